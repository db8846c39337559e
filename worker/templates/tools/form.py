"""Finds out how a chat template reads functions, calls and reasoning: by rendering samples with it.

Templates differ in what they expect and do not say it. What a template "knows" is what stands in the text
that it renders. Knows no tokenizer.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import Message
from worker.templates.clock import ANY_MOMENT
from worker.templates.rendering.process import TemplateRefused
from worker.templates.rendering.text import TokenNames, render_text
from worker.templates.tools.messages import MessageForm, adapt, as_dicts, as_template_tools
from worker.templates.tools.plain import add_plain_form, has_plain_form

PLAIN_FORM = MessageForm()
_REASONING_KEYS = ("reasoning_content", "thinking")
_EMPTY_THOUGHT = re.compile(r"<([\w:]*think[\w:]*)>\s*</\1>\s*")
_THOUGHT_TAG = re.compile(r"<([\w:]*think[\w:]*)>")
_KEY, _VALUE, _OTHER_VALUE = "probe_key", "probe_value", "probe_other_value"
_CALLED, _LISTED, _RESULT, _TEXT, _THOUGHT = (
    f"probe_{name}" for name in ("called", "listed", "result", "text", "thought")
)
_SCHEMA = {"type": "object", "properties": {_KEY: {"type": "string", "description": "a key"}}}
_TOOLS = [
    FunctionTool(name=name, description="a function", parameters=_SCHEMA) for name in (_CALLED, _LISTED)
]
_LONG_ID = "call_0123456789"
_QUESTION, _ANSWER = Message("user", "question"), Message("assistant", "answer")
_JSON = re.compile(rf'"{_KEY}":\s*"{_VALUE}"')
# JSON text that was written as a JSON string, and an object as Python writes it.
_BAD_JSON = re.compile(rf"""\\+"{_KEY}|'{_KEY}'""")


@lru_cache(maxsize=64)
def find_form(template: str, names: TokenNames) -> MessageForm:
    """How the template reads functions, calls and reasoning."""
    form = _find_call_form(template, names)
    if form is None or not _writes_later_calls(template, names, form):
        form = MessageForm(writes_calls=False)
    form = replace(form, lists_functions=_lists_functions(template, names, form))
    return replace(form, **_find_reasoning(template, names))


@lru_cache(maxsize=64)
def find_function_template(template: str, names: TokenNames) -> str:
    """The template, with the plain form in front where it does not know functions, calls and results."""
    form = find_form(template, names)
    if has_plain_form(template) or (form.lists_functions and form.writes_calls):
        return template
    system = _try(template, names, [Message("system", _TEXT), _QUESTION, _ANSWER], MessageForm(), tools=())
    return add_plain_form(
        template, in_user_turn=_TEXT not in (system or ""), functions_only=form.writes_calls
    )


def _find_call_form(template: str, names: TokenNames) -> MessageForm | None:
    """The form in which calls and results are rendered, JSON arguments as JSON; None where there is none."""
    fallback = None
    for as_text, content, short in itertools.product((False, True), ("", None), (False, True)):
        form = MessageForm(arguments_as_text=as_text, silent_content=content, needs_short_ids=short)
        text = _try(template, names, _calling(), form)
        if text is None or not all(word in text for word in (_CALLED, _VALUE, _RESULT)):
            continue
        if _BAD_JSON.search(text) or (content is None and "None" in text):
            continue
        if _JSON.search(text):
            return _refine(template, names, form)
        fallback = fallback or form  # calls that are no JSON: XML, or Python
    return _refine(template, names, fallback) if fallback else None


def _refine(template: str, names: TokenNames, form: MessageForm) -> MessageForm:
    beside = _try(template, names, _calling(text=_TEXT), form)
    parallel = _try(template, names, _calling(values=(_VALUE, _OTHER_VALUE)), form)
    return replace(
        form,
        writes_calls_beside_text=beside is not None and _VALUE in beside,
        has_one_call=parallel is None or _VALUE not in parallel or _OTHER_VALUE not in parallel,
    )


def _writes_later_calls(template: str, names: TokenNames, form: MessageForm) -> bool:
    """Whether a second turn of calls begins as the first: in DeepSeek-V3's template, it has no header."""
    _question, *exchange = _calling()
    questions = ["probe_first", "probe_second"]
    messages = [turn for question in questions for turn in (Message("user", question), *exchange)]
    text = _try(template, names, messages, form, tools=()) or ""
    beginnings = [re.search(f"{question}(.*?){_CALLED}", text, re.DOTALL) for question in questions]
    return len({_EMPTY_THOUGHT.sub("", found[1]) if found else None for found in beginnings}) == 1


def _lists_functions(template: str, names: TokenNames, form: MessageForm) -> bool:
    text = _try(template, names, [_QUESTION, _ANSWER], form)
    return text is not None and _LISTED in text


def _find_reasoning(template: str, names: TokenNames) -> dict[str, Any]:
    """The key of the reasoning and the tag of thoughts, as fields of MessageForm."""
    found = _THOUGHT_TAG.search(template)
    tag = found[1] if found else "think"
    messages = [_QUESTION, replace(_ANSWER, reasoning=_THOUGHT)]
    in_content = _try(template, names, messages, MessageForm(thought_tag=tag), tools=())
    for key in _REASONING_KEYS:
        text = _try(template, names, messages, MessageForm(reasoning_key=key), tools=())
        if text is not None and _THOUGHT in text and text != in_content:
            return {"reasoning_key": key, "thought_tag": tag}
    return {"reasoning_key": None, "thought_tag": tag}


def _calling(*, text: str = "", values: Sequence[str] = (_VALUE,)) -> list[Message]:
    calls = [
        ToolCall(id=f"{_LONG_ID}{place}", name=_CALLED, arguments={_KEY: value})
        for place, value in enumerate(values)
    ]
    results = [Message("tool", _RESULT, tool_call_id=call.id, name=call.name) for call in calls]
    return [_QUESTION, Message("assistant", text, tool_calls=tuple(calls)), *results, _ANSWER]


def _try(
    template: str,
    names: TokenNames,
    messages: Sequence[Message],
    form: MessageForm,
    *,
    tools: Sequence[FunctionTool] = tuple(_TOOLS),
) -> str | None:
    """The sample as the template renders it; None where it refuses."""
    dicts = as_dicts(adapt(messages, form), form)
    variables = {"tools": as_template_tools(tools)} if tools else MappingProxyType({})
    try:
        return render_text(template, names, dicts, moment=ANY_MOMENT, variables=variables)[0]
    except TemplateRefused:
        return None
