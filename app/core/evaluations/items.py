"""Rows of datasets, and inline ones, as evaluations read them: an item for templates, and a prompt. Pure."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import (
    AnswerComparison,
    Completion,
    Conversation,
    LabelledAnswer,
    Message,
    PlainText,
    Row,
    as_example,
)
from app.core.engine.messages import ChatMessage
from app.core.evaluations.spec import EvaluationSpec
from app.core.graders import templates
from app.core.graders.samples import tool_call
from app.core.graders.shapes import TemplateMessage

_ROLES = {"system", "user", "assistant", "tool"}


class EvaluationPrompt(BaseModel):
    """What a model is asked: messages or text, and the functions that it may call."""

    model_config = ConfigDict(extra="forbid")

    messages: list[ChatMessage] | None = Field(None, description="A conversation.")
    text: str | None = Field(None, description="Text that is continued as it is.")
    tools: list[FunctionTool] = Field([], description="Functions that the answer may call.")


@dataclass(frozen=True)
class EvaluationItem:
    """One row of an evaluation. `line` is its line in the dataset, None for an inline row."""

    item: dict[str, Any]
    prompt: EvaluationPrompt
    line: int | None = None


class ItemUnfit(Exception):
    """A row can't be asked."""


def read_row(line: int, row: Row, wanted: EvaluationSpec) -> EvaluationItem | None:
    """Returns a row of a dataset: its last answer is the reference, what stands before it is the prompt.

    None where the row has no answer to imitate, or nothing before it. Raises ItemUnfit where `input` does not
    fit the row.
    """
    if isinstance(row, LabelledAnswer) and not row.label:
        return None
    found = _split(as_example(row))
    if found is None or not (found.prompt.messages or found.prompt.text or not wanted.generate):
        return None
    item = found.item | {"line": line}
    if isinstance(row, AnswerComparison):
        rejected = row.rejected
        item["rejected"] = rejected if isinstance(rejected, str) else rejected[-1].content
    prompt = found.prompt if wanted.input is None else _fill(wanted.input, item, found.prompt.tools)
    return EvaluationItem(item, prompt, line)


def read_inline(item: Mapping[str, Any], wanted: EvaluationSpec) -> EvaluationItem:
    """Returns an inline row. Raises ItemUnfit where it has no prompt, or `input` does not fit it."""
    tools = _read_tools(item.get("tools"))
    if wanted.input is not None:
        return EvaluationItem(dict(item), _fill(wanted.input, item, tools))
    if isinstance(item.get("messages"), list):
        return EvaluationItem(
            dict(item), EvaluationPrompt(messages=_read_messages(item["messages"]), tools=tools)
        )
    if isinstance(item.get("prompt"), str):
        return EvaluationItem(dict(item), EvaluationPrompt(text=item["prompt"]))
    if not wanted.generate:
        return EvaluationItem(dict(item), EvaluationPrompt(text=""))
    raise ItemUnfit("it has neither `messages` nor `prompt`, and the evaluation has no `input`")


def draw(lines: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """Returns the lines, or a draw of `limit` of them in their order; the same seed draws the same."""
    if limit is None or len(lines) <= limit:
        return list(lines)
    return sorted(random.Random(seed).sample(lines, limit))


def split_lines(lines: Iterable[int], share: float, seed: int) -> list[int]:
    """Returns the lines that a job holds out, of those that it can learn from.

    The computation is `hold_out` of worker/templates/token_rows.py; a test holds both equal.
    """
    usable = list(lines)
    if not share or len(usable) < 2:
        return []
    count = min(max(1, round(len(usable) * share)), len(usable) - 1)
    held_out = set(random.Random(seed).sample(range(len(usable)), count))
    return [line for index, line in enumerate(usable) if index in held_out]


def read_items(
    rows: Iterable[tuple[int, Row]], lines: set[int], wanted: EvaluationSpec
) -> Iterator[EvaluationItem | None]:
    """Yield the rows on these lines; None for one that can't be asked. Raises ItemUnfit with the line."""
    for line, row in rows:
        if line in lines:
            try:
                yield read_row(line, row, wanted)
            except ItemUnfit as error:
                raise ItemUnfit(f"Line {line}: {error}") from None


def _split(row: Conversation | Completion | PlainText) -> EvaluationItem | None:
    match row:
        case Conversation(messages, tools):
            return _split_conversation(messages, tools)
        case Completion(prompt, completion):
            item = {"prompt": prompt, "input": prompt, "reference": completion}
            return EvaluationItem(item, EvaluationPrompt(text=prompt))
        case PlainText(text):
            return EvaluationItem({"text": text, "reference": text}, EvaluationPrompt(text=""))


def _split_conversation(
    messages: tuple[Message, ...], tools: tuple[FunctionTool, ...]
) -> EvaluationItem | None:
    last = max((index for index, one in enumerate(messages) if one.role == "assistant"), default=0)
    asked, reference = messages[:last], messages[last]
    if not asked:
        return None
    item: dict[str, Any] = {
        "messages": [_openai_message(message) for message in asked],
        "input": next((one.content for one in reversed(asked) if one.role == "user"), ""),
        "reference": reference.content,
    }
    if reference.tool_calls:
        item["tool_calls"] = [_openai_call(call) for call in reference.tool_calls]
    if tools:
        item["tools"] = [tool.as_template_tool() for tool in tools]
    turns = [
        ChatMessage(
            role=message.role,
            content=message.content,
            tool_calls=list(message.tool_calls),
            tool_call_id=message.tool_call_id,
            name=message.name,
            reasoning=message.reasoning,
        )
        for message in asked
    ]
    return EvaluationItem(item, EvaluationPrompt(messages=turns, tools=list(tools)))


def _openai_message(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_openai_call(call) for call in message.tool_calls]
    optional = {"tool_call_id": message.tool_call_id, "name": message.name}
    return turn | {name: value for name, value in optional.items() if value is not None}


def _openai_call(call: ToolCall) -> dict[str, Any]:
    return tool_call(call.name, json.dumps(call.arguments, ensure_ascii=False), call.id or "")


def _fill(
    wanted: list[TemplateMessage] | str, item: Mapping[str, Any], tools: Sequence[FunctionTool]
) -> EvaluationPrompt:
    namespaces = {"item": item}
    try:
        if isinstance(wanted, str):
            path = "{{" + wanted.strip("{} ") + "}}"
            return EvaluationPrompt(
                messages=_read_messages(templates.resolve(path, namespaces)), tools=list(tools)
            )
        turns = [{"role": one.role, "content": templates.render(one.text, namespaces)} for one in wanted]
    except (templates.VariableMissing, ValueError) as error:
        raise ItemUnfit(str(error)) from None
    return EvaluationPrompt(messages=_read_messages(turns), tools=list(tools))


def _read_messages(value: object) -> list[ChatMessage]:
    """Returns messages in OpenAI's form as the engine takes them. Raises ItemUnfit."""
    if not isinstance(value, list) or not value:
        raise ItemUnfit("the prompt is no list of messages")
    return [_read_message(one) for one in value]


def _read_message(value: object) -> ChatMessage:
    if not isinstance(value, dict):
        raise ItemUnfit("a message is no object")
    role = {"developer": "system", "function": "tool"}.get(str(value.get("role")), value.get("role"))
    if role not in _ROLES:
        raise ItemUnfit(f"a message has the role {role!r}")
    turn = {name: value.get(name) for name in ("tool_call_id", "name")}
    try:
        return ChatMessage(
            role=role,
            content=_read_content(value.get("content")),
            tool_calls=[_read_call(call) for call in value.get("tool_calls") or []],
            **{name: found for name, found in turn.items() if isinstance(found, str)},
        )
    except (ValidationError, ValueError, TypeError) as error:
        raise ItemUnfit(f"a message can't be read: {error}") from None


def _read_content(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ItemUnfit("a message has content that is no text")
    return "\n".join(str(text) for text in texts)


def _read_call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return ToolCall(name=function["name"], arguments=arguments, id=call.get("id"))


def _read_tools(value: object) -> list[FunctionTool]:
    if value is None:
        return []
    try:
        found = [one.get("function", one) for one in value]  # type: ignore[attr-defined]
        fields = ("name", "description", "parameters", "strict")
        return [
            FunctionTool.model_validate({name: one[name] for name in fields if one.get(name) is not None})
            for one in found
        ]
    except (AttributeError, TypeError, ValidationError) as error:
        raise ItemUnfit(f"`tools` can't be read: {error}") from None
