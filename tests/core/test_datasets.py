"""What is found in a dataset's lines, and what is said of the bad ones."""

import json
from typing import Any

import pytest

from app.core.datasets import (
    Completion,
    Conversation,
    DatasetFormat,
    Inspection,
    Message,
    PlainText,
    inspect,
    read_rows,
    refuse_problems,
)
from app.core.errors import DatasetInvalid
from tests.factories import CHAT_ROW, jsonl


def inspected(*rows: Any) -> Inspection:
    return inspect(jsonl(rows).splitlines(keepends=True), max_rows=100)


def problem_of(row: dict[str, Any]) -> str:
    """What is said of a bad second line after a good first one of the chat format."""
    [problem] = inspected(CHAT_ROW, row).problems
    assert problem.line == 2
    return problem.message


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("record", "name", "row"),
    [
        (
            chat(("user", "q"), ("assistant", "a")),
            "messages",
            Conversation((Message("user", "q"), Message("assistant", "a"))),
        ),
        ({"prompt": "p", "completion": "c"}, "prompt_completion", Completion("p", "c")),
        ({"text": "t"}, "text", PlainText("t")),
        (
            {"instruction": "do", "input": "this", "output": "done"},
            "instruction",
            Conversation((Message("user", "do\n\nthis"), Message("assistant", "done"))),
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "conversations",
            Conversation((Message("user", "q"), Message("assistant", "a"))),
        ),
    ],
)
def test_each_format_is_detected_and_parsed(record: dict[str, Any], name: str, row: object) -> None:
    found = inspected(record)
    assert (found.format, found.rows, found.problems) == (name, 1, [])
    assert list(read_rows(jsonl([record]).splitlines(), DatasetFormat(name))) == [(1, row)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (chat(("user", "q")), "the last message must be from the assistant, found 'user'"),
        (chat(("assistant", "a")), "message 1 must be from the user"),
        (chat(("system", "s"), ("user", "q"), ("user", "q")), "message 3 must be from the assistant"),
        (chat(("bot", "a")), "the role 'bot'"),
        (chat(("user", "q"), ("assistant", "  ")), "message 2: 'content' is empty"),
        (chat(("user", 5), ("assistant", "a")), "must be text, found a number"),
        (chat(("user", "\ud83d"), ("assistant", "a")), "half of a surrogate pair"),
        ({"messages": []}, "an empty list"),
        ({"messages": "q"}, "found text"),
        ({"text": "t"}, "'messages' is missing"),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(row: dict[str, Any], said: str) -> None:
    assert said in problem_of(row)


def test_a_weight_must_be_0_or_1_and_leave_something_to_learn() -> None:
    row = chat(("user", "q"), ("assistant", "a"))
    row["messages"][1]["weight"] = 2
    assert "use 0 or 1" in problem_of(row)
    row["messages"][1]["weight"] = 0
    assert "nothing to learn" in problem_of(row)


def test_every_bad_line_is_counted_and_the_message_shows_the_first() -> None:
    found = inspect([json.dumps(CHAT_ROW).encode(), *[b"{broken"] * 150], max_rows=1000)
    assert (found.rows, found.problem_count, len(found.problems)) == (1, 150, 100)
    with pytest.raises(DatasetInvalid) as refused:
        refuse_problems(found)
    assert refused.value.message.startswith("150 of 151 lines can't be used. Line 2: not valid JSON")
    assert refused.value.problems[0] == {"line": 2, "message": found.problems[0].message}


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"[1]", b"null", b'{"a":', b"[" * 100_000])
def test_junk_is_a_problem_and_never_a_crash(raw: bytes) -> None:
    assert inspect([raw], max_rows=10).problem_count == 1


def test_blank_lines_and_a_byte_order_mark_are_passed_over() -> None:
    lines = [b"\xef\xbb\xbf" + json.dumps(CHAT_ROW).encode(), b"\n", json.dumps(CHAT_ROW).encode()]
    assert (inspect(lines, max_rows=10).rows, inspect(lines, max_rows=10).problems) == (2, [])


@pytest.mark.parametrize("lines", [[], [b"\n", b"  \n"]])
def test_an_empty_file_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(DatasetInvalid, match="empty"):
        inspect(lines, max_rows=10)


def test_unknown_columns_are_refused_with_the_known_ones() -> None:
    with pytest.raises(DatasetInvalid, match="'question'") as refused:
        inspected({"question": "q"})
    assert "`messages`" in (refused.value.hint or "")


def test_columns_of_two_formats_are_refused_with_the_choices() -> None:
    with pytest.raises(DatasetInvalid, match="messages or text"):
        inspected({"text": "t", **CHAT_ROW})


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(DatasetInvalid, match="more than 100 rows"):
        inspected(*[CHAT_ROW] * 101)
