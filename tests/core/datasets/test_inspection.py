"""Inspecting uploads: what is recorded, what is stored, and the messages about bad rows."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from app.core.datasets.inspection import MAX_PROBLEMS, OnProblem, refuse_problems
from app.core.datasets.limits import Limits
from app.core.datasets.records import open_rows, store_upload
from app.core.datasets.rows import Completion, PlainText
from app.core.errors.datasets import DatasetInvalid
from app.core.storage.artifacts import ArtifactStore
from tests.core.datasets.uploads import QUESTION, inspected
from tests.factories import CHAT_ROW, jsonl

CHOICE = {"text": "t", **CHAT_ROW}


def test_the_stored_rows_have_the_recorded_size_and_hash(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(jsonl([QUESTION, {"prompt": ""}]))
    store = ArtifactStore(str(tmp_path / "store"))
    dataset = store_upload(
        store,
        upload,
        name="mine",
        limits=Limits(),
        on_problem=OnProblem.SKIP,
        column_map={"prompt": "prompt"},
    )
    with store.open(dataset.artifact) as file:
        raw = file.read()
    assert list(open_rows(store, dataset)) == [(1, Completion("p", "c"))]
    assert (dataset.rows, dataset.problem_count, dataset.size_bytes) == (1, 1, len(raw))
    assert dataset.problems[0]["line"] == 2
    assert dataset.upload["container"] == "jsonl"
    assert dataset.upload["size_bytes"] == upload.stat().st_size
    assert len({dataset.sha256, dataset.upload["sha256"], ""}) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("rows-")] == []


def test_every_bad_line_is_counted_and_the_message_shows_the_first() -> None:
    found = inspected(jsonl([CHAT_ROW]) + b"{broken\n" * 150).found
    assert (found.rows, found.problem_count, len(found.problems)) == (1, 150, MAX_PROBLEMS)
    with pytest.raises(DatasetInvalid) as refused:
        refuse_problems(found)
    assert refused.value.message.startswith("150 of 151 rows can't be used. Line 2: not valid JSON")
    assert refused.value.problems[0] == {"line": 2, "message": found.problems[0].message}
    assert "on_problem=skip" in (refused.value.hint or "")
    refuse_problems(found, OnProblem.SKIP)


def test_a_file_where_nothing_is_left_is_refused_in_both_modes() -> None:
    found = inspected(jsonl([{"text": ""}])).found
    for on_problem in OnProblem:
        with pytest.raises(DatasetInvalid, match=r"The only row can't be used\. Line 1: 'text' is empty"):
            refuse_problems(found, on_problem)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            b"{broken",
            "Line 2: not valid JSON: Expecting property name enclosed in double quotes at column 2.",
        ),
        (b'{"text":', "Line 2: not valid JSON: Expecting value at column 9. Expected one JSON object."),
        (
            b'{"text": "never',
            "Line 2: not valid JSON: Unterminated string at column 10. Expected one JSON object.",
        ),
        (b"[1]", "Line 2: expected a JSON object, found a list."),
        (b"null", "Line 2: expected a JSON object, found null."),
        (b'{"text": "\xff"}', "Line 2: not UTF-8 text, it has the byte 0xff. Save the file as UTF-8."),
        (b'{"a":' + b"[" * 100_000, "Line 2: the JSON is nested too deeply."),
        (b'{"text": ' + b"1" * 5000 + b"}", "Line 2: 'text' must be text, found a number."),
        (b'{"text": NaN}', "Line 2: 'text' must be text, found NaN, a missing value."),
        (
            b'{"text": "a", "text": "b"}',
            "Line 2: the key 'text' is there twice in one object. Keep one of them.",
        ),
        (b'{"text": "\\ud83d"}', "Line 2: 'text' holds \\ud83d, half of a surrogate pair."),
        (b'{"body": "a", "id": 1}', "Line 2: 'text' is missing; this line has 'body', 'id'."),
        (
            b'{"text": "' + b"a" * 200_000 + b'"}',
            "Line 2: the row is longer than 128 KiB. Shorten it, or raise TUNESMITH_",
        ),
    ],
)
def test_a_bad_line_is_a_problem_and_the_next_one_is_read(raw: bytes, said: str) -> None:
    upload = inspected(b'{"text": "one"}\n' + raw + b'\n{"text": "three"}\n', max_row_bytes=1 << 17)
    assert upload.rows == [(1, PlainText("one")), (3, PlainText("three"))]
    [problem] = upload.problems
    assert problem.startswith(said)


def test_blank_lines_are_passed_over_but_counted_as_lines() -> None:
    upload = inspected(b'\n{"text": "a"}\r\n  \r\n{"text": "b"}')
    assert upload.rows == [(2, PlainText("a")), (4, PlainText("b"))]


@pytest.mark.parametrize("raw", [b"", b"\n", b"  \r\n\t\n", b"\xef\xbb\xbf", b"\xff\xfe", b"[]", b" [ ] \n"])
def test_an_empty_file_is_refused(raw: bytes) -> None:
    with pytest.raises(DatasetInvalid, match="The file is empty"):
        inspected(raw)


def test_one_row_is_enough() -> None:
    assert inspected(jsonl([CHAT_ROW])).found.rows == 1


def test_an_ambiguous_file_is_refused_with_the_choices_and_a_map_chooses() -> None:
    with pytest.raises(DatasetInvalid, match="messages or text"):
        inspected(jsonl([CHOICE]))
    assert inspected(jsonl([CHOICE]), {"text": "text"}).rows == [(1, PlainText("t"))]


def test_a_first_row_of_other_columns_is_a_problem_when_later_ones_fit() -> None:
    upload = inspected(jsonl([{"version": 1}, QUESTION]))
    assert upload.problems == ["Line 1: the columns 'version' fit no known format."]
    assert upload.rows == [(2, Completion("p", "c"))]


@pytest.mark.parametrize("count", [1, 500])
def test_unknown_columns_are_refused(count: int) -> None:
    with pytest.raises(DatasetInvalid, match="'question' fit no known format"):
        inspected(jsonl([{"question": "q"}] * count))


def test_an_optional_mapped_column_may_be_missing_in_some_rows_but_not_in_all() -> None:
    alpaca = {"instruction": "i", "output": "o"}
    column_map = {"instruction": "instruction", "input": "context"}
    assert inspected(jsonl([alpaca, {**alpaca, "context": "c"}]), column_map).found.rows == 2
    with pytest.raises(DatasetInvalid, match="column_map names 'context'"):
        inspected(jsonl([alpaca]), column_map)


def test_too_many_rows_or_blank_lines_are_refused() -> None:
    assert inspected(jsonl([QUESTION] * 10), max_rows=10).found.rows == 10
    with pytest.raises(DatasetInvalid, match="more than 10 rows"):
        inspected(jsonl([QUESTION] * 10 + [1]), max_rows=10)
    with pytest.raises(DatasetInvalid, match="more than 10 blank lines"):
        inspected(b"\n" * 11 + jsonl([QUESTION]), max_rows=10)


def test_a_row_of_10_megabytes_is_fine() -> None:
    row = {"text": "ab 😀\n" * 600_000}
    for raw in (jsonl([row]), json.dumps([row]).encode()):
        assert inspected(raw).rows == [(1, PlainText(row["text"]))]


def test_columns_are_listed_once_and_can_be_stored_anywhere() -> None:
    rows = [{"text": "a", "\ud83d": 1, "x" * 1000: 2}, *({"text": "a", f"c{n}": n} for n in range(300))]
    columns = inspected(jsonl(rows)).found.columns
    assert columns[:2] == ["text", "\\ud83d"]
    assert len(columns) == 200
    assert max(map(len, columns)) == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
known_columns = st.sampled_from(
    [
        "messages",
        "prompt",
        "completion",
        "text",
        "instruction",
        "input",
        "output",
        "conversations",
        "system",
        "history",
        "tools",
        "label",
    ]
)
parts = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image"]) | json_values,
        "text": json_values,
        "a": json_values,
    },
)
calls = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("f") | json_values,
        "arguments": st.just("{}") | json_values,
        "function": st.fixed_dictionaries({"name": st.just("f") | json_values, "arguments": json_values}),
        **dict.fromkeys(("type", "id", "parameters", "description"), json_values),
    },
)
turns = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("value", "weight", "loss", "train", "parts", "name", "reasoning"), json_values),
        **dict.fromkeys(("tool_calls", "function_call"), st.lists(calls, max_size=2) | calls | json_values),
        **dict.fromkeys(
            ("role", "from"), st.sampled_from(["user", "assistant", "tool", "tool_call"]) | json_values
        ),
        "content": st.lists(parts, max_size=3) | json_values,
    },
)
rows = json_values | st.dictionaries(
    known_columns, json_values | st.lists(turns, max_size=3) | st.lists(calls, max_size=2), max_size=3
)


@given(st.lists(rows, max_size=3), st.booleans())
def test_any_json_is_taken_or_refused_but_never_a_crash(values: list[Any], as_array: bool) -> None:
    rows = [QUESTION, *values]
    upload = inspected(json.dumps(rows).encode() if as_array else jsonl(rows))
    assert upload.rows[0] == (1, Completion("p", "c"))
    assert len(upload.rows) + len(upload.problems) == len(rows)
    "".join(upload.problems).encode()  # can be sent to a client: holds no half of a surrogate pair


@given(st.lists(rows, min_size=1, max_size=3))
@example([{"\ud800": None}])
@example([{"\ud800": [{"role": "user"}]}])
@example([{"chosen": "a", "rejected": "b", "\ud800": "c", "question": "d"}])
def test_json_of_any_columns_is_taken_or_refused_but_never_a_crash(values: list[Any]) -> None:
    try:
        upload = inspected(json.dumps(values).encode())
    except DatasetInvalid as refused:
        "".join([refused.message, refused.hint or ""]).encode()
    else:
        assert len(upload.rows) + len(upload.problems) == len(values)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused_but_never_a_crash(raw: bytes) -> None:
    with suppress(DatasetInvalid):
        assert inspected(raw).found.rows <= len(raw)


def test_nothing_of_the_upload_is_left_behind_when_it_is_refused(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"PK\x03\x04")
    with pytest.raises(DatasetInvalid):
        store_upload(ArtifactStore(str(tmp_path / "store")), upload, name="mine", limits=Limits())
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]
