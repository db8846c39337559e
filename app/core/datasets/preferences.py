"""Turns a record with preferred and rejected answers, or with an answer and its label, into a row.

Records of TRL, OpenAI, ms-swift and LLaMA-Factory are understood. Knows no files. Every error is for the
person who made the file.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from app.core.chat.tools import FunctionTool
from app.core.datasets.columns import question_turns, refuse_columns, system_of, tools_of
from app.core.datasets.conversations.content import checked_text, messages_of
from app.core.datasets.conversations.conversation import (
    ASKING,
    check_answer,
    parse_conversation,
    parse_exchange,
)
from app.core.datasets.conversations.functions import functions_of
from app.core.datasets.field_names import meaning_of
from app.core.datasets.problems import BadRow, quoted, shown
from app.core.datasets.readers.json_values import BadJson, decode_json, kind_of
from app.core.datasets.rows import AnswerComparison, Conversation, LabelledAnswer, Message, Passage
from app.core.datasets.unused_fields import RowFields, is_absent

Names = Mapping[str, str]
Record = Mapping[str, Any]
# Messages of a record in the columns that have them.
Turns = Mapping[str, list[object]]
# The preferred and the rejected answer: their columns, and their messages or text.
Answers = Mapping[str, list[object] | str]

_LABELS = {"true": True, "1": True, "false": False, "0": False}
_ANSWERING = ("assistant", "gpt", "model", "function_call", "function_calls", "tool_call", "tool_calls")


@dataclass(frozen=True)
class _Shared:
    """What the conversations of a row share: its system prompt and functions, and where unused fields go."""

    fields: RowFields
    system: str | None
    tools: tuple[FunctionTool, ...]

    @classmethod
    def read(cls, record: Record, names: Names, fields: RowFields) -> "_Shared":
        return cls(fields, system_of(record, names), tools_of(record, names, fields))


def parse_comparison(record: Record, names: Names, fields: RowFields) -> AnswerComparison:
    """Returns a record with two answers as a row. Raises BadRow."""
    shared = _Shared.read(record, names, fields)
    if "preferred_output" in names:
        prompt, tools = _openai_input(record, names["input"], fields)
        answers = _answers(record, names["preferred_output"], names["non_preferred_output"])
        return _compare_after(prompt, answers, replace(shared, tools=tools))
    if "rejected_response" in names:
        return _compare_last(record, names["messages"], names["rejected_response"], shared)
    found = _prompt(record, names)
    answers = _answers(record, names["chosen"], names["rejected"])
    if not (found is None or isinstance(found, str)):
        return _compare_after(found, answers, shared)
    if all(isinstance(answer, str) for answer in answers.values()):
        if found is None and names.get("prompt") in record:
            raise BadRow(f"{quoted([names['prompt']])} is empty. Fill it in, or remove the row.")
        return _compare_texts(found, answers)
    if found is None:
        return _compare_conversations(None, answers, shared)
    return _compare_after(_asked(found, names["prompt"]), answers, shared)


def parse_labelled_answer(record: Record, names: Names, fields: RowFields) -> LabelledAnswer:
    """Returns a record with an answer and its label as a row. Raises BadRow."""
    label = _label(record[names["label"]], names["label"])
    shared = _Shared.read(record, names, fields)
    column = names.get("messages") or names.get("conversations")
    if column is not None:
        turns = {column: messages_of(record[column], column)}
        whole = parse_conversation(turns, fields, system=shared.system, tools=shared.tools)
        return _label_conversation(whole, label)
    completion = names.get("completion") or names["output"]
    answer = _answer(record[completion], completion)
    prompt = _prompt(record, names)
    if prompt is None:
        raise BadRow(f"{quoted([names['prompt']])} is empty. Fill it in, or remove the row.")
    if isinstance(prompt, str) and isinstance(answer, str):
        return LabelledAnswer(prompt, answer, label)
    if isinstance(prompt, str):
        prompt = _asked(prompt, names["prompt"])
    turns = {completion: _as_turns(answer)}
    whole, border = parse_exchange(prompt, turns, fields, system=shared.system, tools=shared.tools)
    return LabelledAnswer(whole.messages[:border], whole.messages[border:], label, whole.tools)


def _prompt(record: Record, names: Names) -> Turns | str | None:
    """Returns the turns or the text of a prompt; None where the answers begin with it."""
    if "instruction" in names:
        return question_turns(record, names)
    if column := names.get("conversations"):
        return {column: messages_of(record[column], column)}
    column = names.get("prompt")
    if column is None:
        return None
    value = _decoded(record.get(column))
    if isinstance(value, list):
        refuse_columns(value, column)
        return {column: messages_of(value, column)}
    if is_absent(value) or (isinstance(value, str) and not value.strip()):
        return None
    return checked_text(value, column)


def _openai_input(record: Record, column: str, fields: RowFields) -> tuple[Turns, tuple[FunctionTool, ...]]:
    """Returns the messages and the functions of OpenAI's `input`."""
    value = _decoded(record[column])
    if not isinstance(value, dict):
        raise BadRow(f"{quoted([column])} must be an object with 'messages', found {kind_of(value)}.")
    if is_absent(value.get("messages")):
        raise BadRow(f"{quoted([column])} has no 'messages'.")
    path = f"{column}.messages"
    for key, found in value.items():
        if key not in ("messages", "tools"):
            fields.add(f"{column}.{key}", found, meaning_of(key))
    tools = value.get("tools")
    listed = () if is_absent(tools) else functions_of(tools, f"{column}.tools", fields)
    return {path: messages_of(value["messages"], path)}, listed


def _answers(record: Record, chosen: str, rejected: str) -> Answers:
    return {column: _answer(record[column], column) for column in (chosen, rejected)}


def _answer(value: object, column: str) -> list[object] | str:
    """Returns the turns or the text of an answer."""
    value = _decoded(value)
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        if value and all(isinstance(text, str) for text in value):
            raise BadRow(f"{quoted([column])} is a list of texts. Write a row for each of them.")
        return messages_of(value, column)
    return checked_text(value, column)


def _decoded(value: object) -> object:
    """Returns messages that a cell of text holds as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            decoded = decode_json(value)
        except BadJson:
            return value
        first = decoded[0] if isinstance(decoded, list) and decoded else decoded
        if isinstance(first, dict) and first.keys() & {"role", "from", "messages"}:
            return decoded
    return value


def _as_turns(answer: list[object] | str) -> list[object]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _asked(prompt: str, column: str) -> Turns:
    return {column: [{"role": "user", "content": prompt}]}


def _begins_conversation(turns: list[object]) -> bool:
    """Whether messages begin with the prompt, and not with the answer."""
    first = turns[0]
    role = (first.get("role") or first.get("from")) if isinstance(first, dict) else None
    return isinstance(role, str) and role.strip().casefold() not in _ANSWERING


def _compare_last(record: Record, messages: str, rejected: str, shared: _Shared) -> AnswerComparison:
    """Returns messages, of which the last is the preferred answer, with the answer that is rejected."""
    *asked, last = turns = messages_of(record[messages], messages)
    answer = _answer(record[rejected], rejected)
    if not isinstance(answer, str) and _begins_conversation(answer):
        return _compare_conversations(None, {messages: turns, rejected: answer}, shared)
    if not asked or _begins_conversation([last]):
        raise BadRow(f"{quoted([messages])} must end with the preferred answer, from the assistant.")
    return _compare_after({messages: asked}, {messages: [last], rejected: answer}, shared)


def _compare_texts(prompt: str | None, answers: Answers) -> AnswerComparison:
    """Returns texts as a row without a chat template. Where there is no prompt, both begin with it."""
    chosen, rejected = (str(answer) for answer in answers.values())
    _refuse_equal(chosen, rejected, answers)
    if prompt is None:
        border = _common_text(chosen, rejected)
        prompt = chosen[:border]
        if not prompt.strip():
            raise BadRow(
                f"there is no prompt, and {quoted(answers)} do not begin with the same text. Add a column "
                "'prompt'."
            )
        chosen, rejected = chosen[border:], rejected[border:]
        for column, text in zip(answers, (chosen, rejected), strict=True):
            if not text.strip():
                raise BadRow(f"{quoted([column])} ends where the other answer goes on: its answer is empty.")
    return AnswerComparison(prompt, chosen, rejected)


def _common_text(one: str, other: str) -> int:
    """Returns how many characters two texts begin with, up to the last white space in them or after them."""
    length = min(len(one), len(other))
    end = next((place for place in range(length) if one[place] != other[place]), length)
    if end < length and one[end].isspace() and other[end].isspace():
        return end
    return max((place for place in range(end) if one[place].isspace()), default=0)


def _compare_after(prompt: Turns, answers: Answers, shared: _Shared) -> AnswerComparison:
    """Returns a prompt of messages and two answers as a row; the answers may repeat the prompt."""
    if any(not isinstance(answer, str) and _begins_conversation(answer) for answer in answers.values()):
        return _compare_conversations(prompt, answers, shared)
    read = []
    for column, answer in answers.items():
        turns = {column: _as_turns(answer)}
        with _naming(column):
            read.append(
                parse_exchange(prompt, turns, shared.fields, system=shared.system, tools=shared.tools)
            )
    (chosen, border), (rejected, _) = read
    _refuse_equal(chosen.messages, rejected.messages, answers)
    return AnswerComparison(
        chosen.messages[:border], chosen.messages[border:], rejected.messages[border:], chosen.tools
    )


def _compare_conversations(prompt: Turns | None, answers: Answers, shared: _Shared) -> AnswerComparison:
    """Returns two conversations as a row; their prompt is what they begin with."""
    read = []
    for column, answer in answers.items():
        if isinstance(answer, str):
            raise BadRow(f"{quoted([column])} is text, and the other is a conversation. Write both alike.")
        turns = {column: answer}
        with _naming(column):
            read.append(parse_conversation(turns, shared.fields, system=shared.system, tools=shared.tools))
    chosen, rejected = (conversation.messages for conversation in read)
    _refuse_equal(chosen, rejected, answers)
    border = _common_turns(chosen, rejected)
    if not border:
        raise BadRow(f"{quoted(answers)} are conversations that do not begin with the same prompt.")
    if prompt is not None:
        _check_asked(prompt, chosen[:border], answers)
    for column, messages in zip(answers, (chosen, rejected), strict=True):
        with _naming(column):
            check_answer(messages[border:])
    return AnswerComparison(chosen[:border], chosen[border:], rejected[border:], read[0].tools)


def _common_turns(one: Passage, other: Passage) -> int:
    """Returns how many messages two conversations begin with, up to the last that the assistant answers."""
    pairs = list(zip(one, other, strict=False))
    same = next((place for place, (left, right) in enumerate(pairs) if left != right), len(pairs))
    asking = [
        place
        for place, message in enumerate(one[:same], start=1)
        if isinstance(message, Message) and message.role in ASKING
    ]
    return asking[-1] if asking else 0


def _check_asked(prompt: Turns, common: tuple[Message, ...], columns: Iterable[str]) -> None:
    """Raise BadRow where the conversations do not begin with the prompt of the row."""
    contents = {message.content.strip() for message in common}
    for column, turns in prompt.items():
        for turn in turns:
            said = (turn.get("content") or turn.get("value")) if isinstance(turn, dict) else None
            if isinstance(said, str) and said.strip() not in contents:
                raise BadRow(
                    f"{quoted(columns)} do not begin with {quoted([column])}, which has {shown(said)}."
                )


def _label_conversation(whole: Conversation, label: bool) -> LabelledAnswer:
    """Returns a conversation as a row: its answer is all that follows the last question."""
    places = [place for place, turn in enumerate(whole.messages, start=1) if turn.role == "user"]
    border = places[-1]
    check_answer(whole.messages[border:])
    return LabelledAnswer(whole.messages[:border], whole.messages[border:], label, whole.tools)


def _label(value: object, column: str) -> bool:
    """Returns a label: true or false, 1 or 0, as JSON or as text."""
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in _LABELS:
        return _LABELS[value.strip().casefold()]
    found = shown(value) if isinstance(value, str) else kind_of(value)
    raise BadRow(
        f"{quoted([column])} must be true for a good answer or false for a bad one, found {found}. To learn "
        "every answer, name the other columns in column_map."
    )


@contextmanager
def _naming(column: str) -> Iterator[None]:
    """Say with which answer a conversation has a fault: its messages are counted from those of the prompt."""
    try:
        yield
    except BadRow as error:
        raise BadRow(f"with {quoted([column])}: {error}") from None


def _refuse_equal(chosen: object, rejected: object, columns: Iterable[str]) -> None:
    if chosen == rejected:
        raise BadRow(f"{quoted(columns)} are the same, so neither is preferred. Remove the row.")
