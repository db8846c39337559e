"""Detecting formats by their columns, parsing records, and the messages about bad ones."""

import json
from typing import Any

import pytest

from app.core.datasets.formats import (
    BadRow,
    UnknownColumns,
    check_column_map,
    check_mapped_columns,
    choose_layout,
    parse_row,
)
from app.core.datasets.rows import Completion, Conversation, Message, PlainText, Row
from app.core.errors.datasets import DatasetInvalid

ASKED = (Message("user", "q"), Message("assistant", "a"))


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def sharegpt(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": content} for role, content in turns]}


def parsed(record: dict[str, Any], column_map: dict[str, str] | None = None) -> Row:
    return parse_row(record, choose_layout(record, column_map or {}))


def choose_checked_layout(columns: list[str], column_map: dict[str, str]) -> None:
    check_column_map(column_map)
    check_mapped_columns(columns, column_map)
    choose_layout(columns, column_map)


def complaint(record: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as bad:
        parsed(record)
    return str(bad.value)


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (chat(("user", "q"), ("assistant", "a")), Conversation(ASKED)),
        ({"messages": json.dumps(chat(("user", "q"), ("assistant", "a"))["messages"])}, Conversation(ASKED)),
        ({"messages": sharegpt(("human", "q"), ("gpt", "a"))["conversations"]}, Conversation(ASKED)),
        ({"prompt": "p", "completion": "c"}, Completion("p", "c")),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            Conversation(ASKED),
        ),
        ({"text": " 😀\n", "id": 1}, PlainText(" 😀\n")),
        ({"instruction": "q", "input": "", "output": "a"}, Conversation(ASKED)),
        (
            {"instruction": "do", "input": "this", "output": "a", "system": "s"},
            Conversation((Message("system", "s"), Message("user", "do\n\nthis"), Message("assistant", "a"))),
        ),
        (sharegpt(("human", "q"), ("gpt", "a")), Conversation(ASKED)),
        (
            {"system": "s", **sharegpt(("human", "q"), ("gpt", "a"))},
            Conversation((Message("system", "s"), *ASKED)),
        ),
        ({"system": None, **sharegpt(("human", "q"), ("gpt", "a"))}, Conversation(ASKED)),
    ],
)
def test_each_format_is_detected_and_parsed(record: dict[str, Any], row: Row) -> None:
    assert parsed(record) == row


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (chat(("user", "q")), "the last message must be from the assistant, found 'user'."),
        (chat(("assistant", "a")), "message 1 must be from the user, found 'assistant'."),
        (
            chat(("system", "s"), ("user", "q"), ("user", "q")),
            "message 3 must be from the assistant, found 'user'.",
        ),
        (chat(("system", "s")), "the last message must be from the assistant, found 'system'."),
        (chat(("bot", "a")), "message 1 has the role 'bot'; use one of system, user, assistant."),
        (
            {"messages": [{"role": ["user"], "content": "q"}]},
            "message 1 has the role a list; use one of system, user, assistant.",
        ),
        (
            sharegpt(("bot", "a")),
            "message 1 has the role 'bot'; use one of human, gpt, system, user, assistant.",
        ),
        ({"messages": [{"content": "q"}]}, "message 1 has no 'role'."),
        ({"messages": [{"role": "user"}]}, "message 1 has no 'content'."),
        ({"messages": ["q"]}, "message 1 must be an object with 'role' and 'content', found text."),
        (
            chat(("user", "q"), ("assistant", "  ")),
            "message 2: 'content' is empty. Fill it in, or remove the row.",
        ),
        (chat(("user", 5), ("assistant", "a")), "message 1: 'content' must be text, found a number."),
        (chat(("user", None), ("assistant", "a")), "message 1: 'content' must be text, found null."),
        (
            chat(("user", "\ud83d"), ("assistant", "a")),
            "message 1: 'content' holds \\ud83d, half of a surrogate pair. Write the whole character.",
        ),
        ({"messages": []}, "'messages' must be a list of messages, found an empty list."),
        ({"messages": {}}, "'messages' must be a list of messages, found an object."),
        (
            {"messages": "q"},
            "'messages' must be a list of messages: not valid JSON: Expecting value at column 1.",
        ),
        ({"messages": '{"a": 1}'}, "'messages' must be a list of messages, found an object."),
        ({"text": True}, "'text' must be text, found true or false."),
        ({"text": b"t"}, "'text' must be text, found a value of type bytes."),
        ({"prompt": "p", "completion": ""}, "'completion' is empty. Fill it in, or remove the row."),
        ({"prompt": "p", "completion": ["c"]}, "'completion' must be text, found a list."),
        ({"instruction": "q", "input": 1, "output": "a"}, "'input' must be text, found a number."),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(record: dict[str, Any], said: str) -> None:
    assert complaint(record) == said


def test_a_weight_must_be_0_or_1_and_leave_something_to_learn() -> None:
    record = chat(("user", "q"), ("assistant", "a"))
    record["messages"][1]["weight"] = None
    assert parsed(record) == Conversation(ASKED)
    record["messages"][1]["weight"] = 2
    assert complaint(record) == "message 2 has a weight that is neither 0 nor 1."
    record["messages"][1]["weight"] = 0
    assert complaint(record) == "every assistant message has the weight 0, so there is nothing to learn."


@pytest.mark.parametrize(
    ("columns", "column_map", "used"),
    [
        (["question", "answer"], {"prompt": "question", "completion": "answer"}, ["question", "answer"]),
        (["question", "completion"], {"prompt": "question"}, ["question", "completion"]),
        (["text", "messages"], {"text": "text"}, ["text"]),
        (["instruction", "output", "text"], {"instruction": "instruction"}, ["instruction", "output"]),
        (
            ["prompt", "completion"],
            {"prompt": "completion", "completion": "prompt"},
            ["completion", "prompt"],
        ),
        (["dialog", "text"], {"messages": "dialog"}, ["dialog"]),
    ],
)
def test_a_column_map_says_what_columns_mean(
    columns: list[str], column_map: dict[str, str], used: list[str]
) -> None:
    names = choose_layout(columns, column_map).names
    order = ["messages", "prompt", "completion", "text", "instruction", "output"]
    assert [names[name] for name in order if name in names] == used


def test_a_mapped_row_takes_its_text_from_the_named_columns() -> None:
    record = {"question": "q", "answer": "a", "text": "t"}
    assert parsed(record, {"prompt": "question", "completion": "answer"}) == Completion("q", "a")
    with pytest.raises(BadRow, match="'answer' is empty"):
        parsed({**record, "answer": ""}, {"prompt": "question", "completion": "answer"})


@pytest.mark.parametrize(
    ("column_map", "said"),
    [
        ({"promp": "question"}, "column_map has 'promp', which is no column of any format."),
        (
            {"prompt": "question", "completion": "question"},
            "column_map uses the column 'question' more than once.",
        ),
        (
            {"prompt": "quest"},
            "column_map names 'quest', but the file's columns are 'question', 'answer', 'completion'.",
        ),
        ({"prompt": "question", "text": "answer"}, "column_map mixes columns of several formats"),
        (
            {"prompt": "completion"},
            "column_map has 'prompt' and still needs 'completion'; the file's columns are "
            "'question', 'answer', 'completion'.",
        ),
        ({"system": "question"}, "column_map has 'system' and still needs 'instruction', 'output' or "),
    ],
)
def test_a_wrong_column_map_is_refused(column_map: dict[str, str], said: str) -> None:
    columns = ["question", "answer", "completion"]
    with pytest.raises(DatasetInvalid) as refused:
        choose_checked_layout(columns, column_map)
    assert said in refused.value.message
    assert refused.value.param == "column_map"


@pytest.mark.parametrize(
    ("columns", "example"),
    [
        (["question", "answer", "id"], '{"prompt": "question", "completion": "answer"}'),
        (["body"], '{"text": "body"}'),
    ],
)
def test_unknown_columns_are_refused_with_a_map_to_copy(columns: list[str], example: str) -> None:
    with pytest.raises(UnknownColumns, match="fit no known format") as refused:
        choose_layout(columns, {})
    assert "`messages`" in (refused.value.hint or "")
    assert example in (refused.value.hint or "")


def test_columns_of_two_formats_are_refused_with_the_choices() -> None:
    with pytest.raises(
        DatasetInvalid, match=r"fit several formats: text or instruction, output\."
    ) as refused:
        choose_layout(["instruction", "input", "output", "text"], {})
    assert refused.value.hint == (
        'Say which with column_map: {"text": "text"} or {"instruction": "instruction", "output": "output"}.'
    )


def test_many_and_long_names_are_cut_in_messages() -> None:
    with pytest.raises(UnknownColumns) as refused:
        choose_layout([f"{number}" + "x" * 1000 for number in range(100)], {})
    assert "and 80 more" in refused.value.message
    assert len(refused.value.message) < 2000
