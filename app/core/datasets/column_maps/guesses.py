"""Column maps that are likely to be right for a file, from the names of its columns and its first records.

The names are those that datasets of the Hub use for questions, answers and conversations. Pure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.core.datasets.field_names import Meaning, is_system_prompt, meaning_of, meaning_of_rest, normalized
from app.core.datasets.readers.json_values import BadJson, decode_json
from app.core.datasets.rows import DatasetFormat

Records = Sequence[Mapping[str, Any]]

# Written as `normalized` returns them, the likeliest first.
_NAMES = {
    "messages": "messages conversations conversation dialog dialogue dialogues chat chats turns msgs thread",
    "question": "instruction prompt question questions query problem request userprompt usermessage user "
    "human input source ask q task title",
    "answer": "output completion answer answers response responses reply assistant bestanswer modelanswer "
    "finalanswer expectedoutput target solution generation gpt summary translation result a",
    "context": "context input passage document knowledge background",
    "text": "text content body article story document passage paragraph sentence code markdown",
}
_MESSAGES, _QUESTIONS, _ANSWERS, _CONTEXTS, _TEXTS = (names.split() for names in _NAMES.values())
_CHOSEN = ("chosen", "preferred")
_REJECTED = ("rejected", "dispreferred", "nonpreferred")
_LABELS = (True, False, "true", "false", "True", "False")
# What stands in place of a value that is bytes, or has bytes in it.
BYTES = "(bytes)"
_MAX_JSON_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class ColumnGuess:
    """A format that fits, and the file's column for each of the format's columns."""

    format: DatasetFormat
    column_map: dict[str, str]


def guess_column_maps(columns: Sequence[str], records: Records) -> list[ColumnGuess]:
    """Returns column maps for a file, the likeliest first, and at most one for a format.

    A question and an answer are first read as a conversation, with the base model's chat template.
    """
    kinds = {name: _kind(name, records) for name in columns}
    conversations = [name for name in columns if kinds[name] == "messages"]
    texts = [name for name in columns if kinds[name] == "text"]
    chosen, rejected = (_find_answer(columns, kinds, names) for names in (_CHOSEN, _REJECTED))
    answer = chosen or _first_named(texts, _ANSWERS)
    question = _first_named([name for name in texts if name != answer], _QUESTIONS)
    if answer is None and question is None and len(texts) == 2:
        question, answer = texts
    found = _comparison(columns, kinds, chosen, rejected, records) if chosen and rejected else []
    found += _conversation(conversations, answer, records)
    if question and answer and kinds[answer] == "text":
        pairs = _pair(columns, texts, question, answer)
        found += [*_labelled(pairs[0], columns, records), *pairs]
    text = _first_named(texts, _TEXTS) or (texts[0] if len(texts) == 1 else None)
    if text:
        found.append(ColumnGuess(DatasetFormat.TEXT, {"text": text}))
    return found


def holds_messages(value: object) -> bool:
    """Whether a value is a list of messages, or its JSON as text."""
    if isinstance(value, str) and value.lstrip().startswith("[") and len(value) <= _MAX_JSON_CHARACTERS:
        try:
            value = decode_json(value)
        except BadJson:
            return False
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and bool(first.keys() & {"role", "from"})


def _conversation(conversations: list[str], answer: str | None, records: Records) -> list[ColumnGuess]:
    """Returns the guess for lists of messages: a whole conversation, or a prompt and what follows it."""
    if answer in conversations:
        asked = _first_named([name for name in conversations if name != answer], _QUESTIONS)
        if asked and not _begins_with_a_question(answer, records):
            return [ColumnGuess(DatasetFormat.PROMPT_COMPLETION, {"prompt": asked, "completion": answer})]
        return [ColumnGuess(DatasetFormat.MESSAGES, {"messages": answer})]
    column = _first_named(conversations, _MESSAGES) or next(iter(conversations), None)
    return [ColumnGuess(DatasetFormat.MESSAGES, {"messages": column})] if column else []


def _comparison(
    columns: Sequence[str], kinds: Mapping[str, str | None], chosen: str, rejected: str, records: Records
) -> list[ColumnGuess]:
    """Returns the guess for two answers: after a question, or as conversations that begin with one."""
    answers = {"chosen": chosen, "rejected": rejected}
    if kinds[chosen] == "messages" and _begins_with_a_question(chosen, records):
        return [ColumnGuess(DatasetFormat.COMPARISONS, answers)]
    others = [name for name in columns if name not in answers.values()]
    conversation = _first_named([name for name in others if kinds[name] == "messages"], _QUESTIONS)
    texts = [name for name in others if kinds[name] == "text"]
    if conversation or kinds[chosen] == "messages":
        asked = conversation or _first_named(texts, _QUESTIONS)
        return [ColumnGuess(DatasetFormat.COMPARISONS, {"prompt": asked, **answers} if asked else answers)]
    if question := _first_named(texts, _QUESTIONS):
        pair = _pair(columns, texts, question, chosen)[0].column_map
        asked_with = {name: column for name, column in pair.items() if name != "output"}
        return [ColumnGuess(DatasetFormat.COMPARISONS, {**asked_with, **answers})]
    return [ColumnGuess(DatasetFormat.COMPARISONS, answers)]


def _labelled(pair: ColumnGuess, columns: Sequence[str], records: Records) -> list[ColumnGuess]:
    """Returns the guess for an answer with a label that says whether it is a good one."""
    label = next((name for name in columns if meaning_of(name) is Meaning.LABEL), None)
    if label is None or not all(record.get(label) in _LABELS for record in records):
        return []
    return [ColumnGuess(DatasetFormat.LABELLED_ANSWERS, {**pair.column_map, "label": label})]


def _begins_with_a_question(column: str, records: Records) -> bool:
    first = next((record[column] for record in records if record.get(column)), None)
    if isinstance(first, str):
        first = decode_json(first)
    return isinstance(first, list) and (first[0].get("role") or first[0].get("from")) not in (
        "assistant",
        "gpt",
        "model",
    )


def _pair(columns: Sequence[str], texts: list[str], question: str, answer: str) -> list[ColumnGuess]:
    taken = {question, answer}
    others: dict[str, str] = {}
    if context := _first_named([name for name in texts if name not in taken], _CONTEXTS):
        others["input"] = context
    system = next((name for name in columns if name not in taken and is_system_prompt(name)), None)
    if system:
        others["system"] = system
    return [
        ColumnGuess(DatasetFormat.INSTRUCTION, {"instruction": question, "output": answer, **others}),
        ColumnGuess(DatasetFormat.PROMPT_COMPLETION, {"prompt": question, "completion": answer}),
    ]


def _find_answer(
    columns: Iterable[str], kinds: Mapping[str, str | None], names: tuple[str, ...]
) -> str | None:
    """Returns the column of preferred answers, or of rejected ones; `chosen_model` says something of one."""
    return next(
        (
            name
            for name in columns
            if normalized(name).startswith(names) and meaning_of_rest(name) is Meaning.PREFERENCE
            if kinds[name]
        ),
        None,
    )


def _first_named(columns: Iterable[str], names: Sequence[str]) -> str | None:
    found = [name for name in columns if normalized(name) in names]
    return min(found, key=lambda name: names.index(normalized(name)), default=None)


def _kind(column: str, records: Records) -> str | None:
    """Returns `messages` or `text`, by the values where there are any, else by the column's name."""
    if meaning_of(column) in (Meaning.LABEL, Meaning.MEDIA, Meaning.MASK):
        return None
    values = [record[column] for record in records if record.get(column) not in (None, "")]
    if not records:
        return "messages" if normalized(column) in _MESSAGES else "text"
    if all(isinstance(value, dict) and value.keys() & {"role", "from"} for value in values):
        values = [[value] for value in values]
    checks: dict[str, Callable[[object], bool]] = {
        "messages": holds_messages,
        "text": lambda value: isinstance(value, str) and value.strip() not in ("", BYTES),
    }
    return next((kind for kind, holds in checks.items() if values and all(map(holds, values))), None)
