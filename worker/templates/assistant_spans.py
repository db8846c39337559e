"""Finds the assistant's text in a rendered conversation by its template's `{% generation %}` markers."""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import Message
from worker.templates.clock import ANY_MOMENT
from worker.templates.renderer import end_of_turn, prepare, template_of, token_names
from worker.templates.rendering.process import Span, TemplateRefused
from worker.templates.rendering.text import TokenNames, render_text
from worker.templates.tools.messages import Turn, uses_functions

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION = Message("user", "question")
_SAMPLE = [
    {"role": "user", "content": "question 1"},
    {"role": "assistant", "content": "answer 1"},
    {"role": "user", "content": "question 2"},
    {"role": "assistant", "content": "answer 2"},
]


def find_assistant_spans(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Turn],
    text: str,
    *,
    moment: datetime | None,
    tools: Sequence[FunctionTool] = (),
) -> list[Span] | None:
    """The spans of the assistant's text in `text`, the messages rendered at the moment; None without markers.

    Each span includes the end-of-turn token, also where the markers leave it out.
    """
    template, names = template_of(tokenizer), token_names(tokenizer)
    if template is None or not _marks_answers(template, names):
        return None
    prepared = prepare(template, names, messages, tools)
    if uses_functions(messages, tools) and not _marks_calls(prepared.template, names):
        return None
    try:
        marked, spans = render_text(
            prepared.template,
            names,
            prepared.dicts,
            moment=moment,
            mark=True,
            variables=prepared.variables,
        )
    except TemplateRefused:
        return None
    if marked != text or not spans:
        return None
    end = end_of_turn(tokenizer)
    return [_with_end(text, span, end) for span in spans]


def has_markers(template: str) -> bool:
    """Whether the template has `{% generation %}` markers."""
    return _MARKER.search(template) is not None


@lru_cache(maxsize=64)
def _marks_answers(template: str, names: TokenNames) -> bool:
    """Whether the template has markers that enclose the assistant's text."""
    if not has_markers(template):
        return False
    try:
        marked, spans = render_text(template, names, _SAMPLE, moment=ANY_MOMENT, mark=True)
    except TemplateRefused:
        return False
    found = [marked[start:end] for start, end in spans]
    return all(any(answer in one for one in found) for answer in ("answer 1", "answer 2"))


@lru_cache(maxsize=64)
def _marks_calls(template: str, names: TokenNames) -> bool:
    """Whether the markers enclose calls as well."""
    call = ToolCall(name="function", arguments={"argument": 918273}, id="call_0000")
    prepared = prepare(template, names, [_QUESTION, Message("assistant", "", tool_calls=(call,))], ())
    try:
        marked, spans = render_text(prepared.template, names, prepared.dicts, moment=ANY_MOMENT, mark=True)
    except TemplateRefused:
        return False
    return any("918273" in marked[start:end] for start, end in spans)


def _with_end(text: str, span: Span, end: str | None) -> Span:
    """The span, extended by the end-of-turn token that follows it."""
    after = text[span[1] :]
    if not end or text[: span[1]].rstrip().endswith(end) or not after.lstrip().startswith(end):
        return span
    return span[0], span[1] + len(after) - len(after.lstrip()) + len(end)
