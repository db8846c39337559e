"""Functions and calls as plain text in front of a chat template that has no place for them.

The result is a template itself, so an adapter's folder has it and other programs render the same. Knows no
tokenizer.
"""

from pathlib import Path

_PLAIN = Path(__file__).with_name("plain.jinja").read_text().removesuffix("\n")
# The functions are listed in the first turn of the user, where a template has no system turn.
_IN_USER_TURN = "{%- set functions_in_user_turn = true -%}"
# The template has a form of its own for calls and results, and lists no functions.
_FUNCTIONS_ONLY = "{%- set functions_only = true -%}"


def add_plain_form(template: str, *, in_user_turn: bool, functions_only: bool) -> str:
    """A template that renders functions, and calls unless `functions_only`, as text of its turns."""
    settings = (_IN_USER_TURN if in_user_turn else "") + (_FUNCTIONS_ONLY if functions_only else "")
    return settings + _PLAIN + template


def remove_plain_form(template: str) -> str:
    """The template to which the plain form was added; the template itself where it was not."""
    _settings, found, rest = template.partition(_PLAIN)
    return rest if found else template


def has_plain_form(template: str) -> bool:
    """Whether functions or calls are rendered as plain text."""
    return _PLAIN in template
