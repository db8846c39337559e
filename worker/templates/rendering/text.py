"""Renders a conversation with a chat template, without a tokenizer."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from worker.models.files.error_text import describe
from worker.templates.clock import set_clock
from worker.templates.families import is_known
from worker.templates.rendering.pool import shared_pool
from worker.templates.rendering.process import Span, TemplateRefused
from worker.templates.tools.plain import remove_plain_form

# The tokens that a template may name, as in `bos_token`.
TokenNames = tuple[tuple[str, str], ...]


def render_text(
    template: str,
    names: TokenNames,
    messages: list[dict[str, Any]],
    *,
    moment: datetime | None,
    mark: bool = False,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[str, list[Span]]:
    """A conversation rendered without a tokenizer, and the spans that `{% generation %}` markers enclose.

    Templates of Tunesmith are rendered in this process: they are known to end. All others are programs of
    strangers. Raises TemplateRefused, TemplateExceedsLimits, QueueFull and EngineFailed.
    """
    clocked, clock = set_clock(template, moment)
    all_variables: dict[str, Any] = {
        **variables,
        **dict(names),
        **clock,
        "add_generation_prompt": add_generation_prompt,
    }
    if mark or not is_known(remove_plain_form(template)):
        return shared_pool().render(clocked, messages, all_variables, marks_answers=mark)
    try:
        rendered: Any = render_jinja_template([messages], chat_template=clocked, **all_variables)
    except Exception as error:
        raise TemplateRefused(describe(error)) from error
    return rendered[0][0], []
