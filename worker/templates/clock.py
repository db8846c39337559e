"""The clock of a chat template: `strftime_now` at a fixed moment instead of the present.

transformers defines `strftime_now` as the present, and hands a template plain data only, never a function. So
the moment is passed as data, the text of every directive of strftime, and a macro in front of the template
reads it. Known to follow transformers 5.17 to 5.23.
"""

import string
from datetime import datetime
from functools import lru_cache

ANY_MOMENT = datetime(2000, 1, 1)  # for what is found once per template and cached
_FUNCTION = "strftime_now"
_CLOCK = "strftime_directives"
_MACRO = (
    "{% macro strftime_now(format) %}{% set pending = namespace(text='') %}{% for letter in format %}"
    "{% if pending.text or letter == '%' %}{% set pending.text = pending.text + letter %}"
    "{% else %}{{ letter }}{% endif %}"
    f"{{% if pending.text in {_CLOCK} %}}{{{{ {_CLOCK}[pending.text] }}}}{{% set pending.text = '' %}}"
    "{% endif %}{% endfor %}{{ pending.text }}{% endmacro +%}"
)
_FLAGS = ("", "-")  # as in %d and %-d, the day without its zero


def set_clock(template: str, moment: datetime | None) -> tuple[str, dict[str, dict[str, str]]]:
    """A template that renders as this one does at the moment, and the variables it needs.

    None stands for the present; the template is unchanged then, and where it reads no clock.
    """
    if moment is None or _FUNCTION not in template:
        return template, {}
    return _MACRO + template, {_CLOCK: _format_directives(moment)}


@lru_cache(maxsize=8)
def _format_directives(moment: datetime) -> dict[str, str]:
    """The text of every directive, by the directive."""
    directives = [f"%{flag}{letter}" for flag in _FLAGS for letter in string.ascii_letters]
    return {"%%": "%", **{directive: moment.strftime(directive) for directive in directives}}
