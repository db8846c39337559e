"""Finds where an answer begins in a rendered conversation: after what the template writes, as in a prompt,
between the message before and the answer of the model.
"""

import re
from collections.abc import Sequence

from app.core.datasets.rows import Message
from app.core.errors import InvalidRequest
from worker.templates.renderer import DatedRenderer

# <think>, <thinking>, <seed:think>, <reasoning>…
_THOUGHT = r"[\w:]*(?:think|thought|reason)[\w:]*"
OPENED_THOUGHT = re.compile(rf"<{_THOUGHT}>\s*$")
EMPTY_THOUGHT = re.compile(rf"<({_THOUGHT})>\s*</\1>\s*")
_THOUGHT_OF_A_PROMPT = re.compile(rf"(?:{OPENED_THOUGHT.pattern}|{EMPTY_THOUGHT.pattern}$)")


def find_answer_start(
    messages: Sequence[Message], index: int, before: str, renderer: DatedRenderer, *, is_prompt: bool = False
) -> int | None:
    """Where the generation prompt of message `index` ends in `before`, the text before the message's content.

    Between the two is what the template inserts, an empty thought for example, which the model must generate.
    A generation prompt may have a thought that a finished turn lacks. `is_prompt` says that the messages are
    rendered as a prompt. None where the text has no generation prompt.
    """
    header = find_header(messages, index, renderer)
    between = _find_between(messages, index, renderer, is_prompt)
    if not header or between is None or not before.endswith(between):
        return None
    for one in (header, _THOUGHT_OF_A_PROMPT.sub("", header)):
        if one and between.startswith(one):
            return len(before) - len(between) + len(one)
    return None


def find_header(messages: Sequence[Message], index: int, renderer: DatedRenderer) -> str:
    """What follows the content of the message before in the prompt for message `index`; "" where unknown."""
    if not index:
        return ""
    try:
        pieces = renderer.render_around(messages[:index], [index - 1], is_prompt=True)
    except InvalidRequest:
        return ""
    return pieces[-1] if pieces else ""


def _find_between(
    messages: Sequence[Message], index: int, renderer: DatedRenderer, is_prompt: bool
) -> str | None:
    """The text between the content of the message before and that of message `index`."""
    pieces = renderer.render_around(messages, [index - 1, index], is_prompt=is_prompt)
    return pieces[1] if pieces else None
