"""Counting unused fields over a file, and refusing those that change what is learned."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.core.datasets.field_names import Meaning, is_turn_flag, meaning_of
from app.core.datasets.inspection import refuse_fields
from app.core.datasets.unused_fields import OnUnused
from app.core.errors.datasets import FieldsUnused
from tests.core.datasets.uploads import QUESTION, Inspected, inspected, parquet
from tests.factories import CHAT_ROW, jsonl

REJECTED = "Not this."


def unused(upload: Inspected) -> list[tuple[str, int, bool]]:
    return [(one.field, one.rows, one.changes_learning) for one in upload.found.unused_fields]


def test_fields_are_counted_over_the_file_and_those_that_change_learning_come_first() -> None:
    rows = [{**CHAT_ROW, "id": 1}, {**CHAT_ROW, "id": 2, "rejected": REJECTED}, {**CHAT_ROW, "rejected": []}]
    assert unused(inspected(jsonl(rows))) == [("rejected", 1, True), ("id", 2, False)]


def test_a_field_that_is_empty_in_every_row_is_named_and_never_refused() -> None:
    upload = inspected(jsonl([{**CHAT_ROW, "rejected": "[]", "images": None}] * 3))
    assert unused(upload) == [("rejected", 3, False)]
    refuse_fields(upload.found)


def test_a_row_that_can_not_be_used_is_not_counted() -> None:
    upload = inspected(
        jsonl([{**QUESTION, "images": ["i"]}, {"prompt": "", "completion": "c", "images": ["i"]}])
    )
    assert unused(upload) == [("images", 1, True)]


def test_an_upload_is_refused_with_fields_rows_and_lines_until_they_are_ignored() -> None:
    found = inspected(jsonl([CHAT_ROW, *[{**CHAT_ROW, "rejected": REJECTED, "id": 1}] * 7])).found
    with pytest.raises(FieldsUnused) as refused:
        refuse_fields(found)
    assert refused.value.message == (
        "Nothing would be learned from 'rejected' (preferences) in 7 of 8 rows (lines 2, 3, 4, 5, 6, …)."
    )
    assert refused.value.hint == (
        "Preferences are learned from `prompt`, `chosen` and `rejected`, or from `prompt`, `completion` and "
        "`label`, in every row; column_map says which columns these are. Remove this field, or train without "
        "it: on_unused=ignore."
    )
    assert refused.value.unused_fields == [
        {"field": "rejected", "rows": 7, "changes_learning": True, "lines": [2, 3, 4, 5, 6]}
    ]
    refuse_fields(found, OnUnused.IGNORE)


def test_many_and_long_names_are_bounded_and_those_that_change_learning_are_not_crowded_out() -> None:
    rows: list[dict[str, Any]] = [{**QUESTION, **{f"c{n}": 1 for n in range(500)}, "x" * 1000: 1}]
    rows.append({**QUESTION, "\ud83d": 1, "rejected": "r"})
    found = inspected(jsonl(rows)).found
    assert len(found.unused_fields) == 201
    assert found.unused_fields[0].field == "rejected"
    assert max(len(one.field) for one in found.unused_fields) <= 200
    json.dumps([one.as_record() for one in found.unused_fields], ensure_ascii=False).encode()


def test_the_unnamed_index_of_a_csv_file_is_named() -> None:
    assert unused(inspected(b",prompt,completion\n0,a,b\n1,c,d\n")) == [("(unnamed)", 2, False)]


def test_an_empty_cell_of_a_csv_file_has_no_value() -> None:
    assert unused(inspected(b"text,label\na,\nb,1\nc,\n")) == [("label", 1, True)]
    assert unused(inspected(b"text,label\na,\nb,\n")) == [("label", 2, False)]


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ("NULL::VARCHAR", []),
        ("''", [("tools", 2, False)]),
        ("' [] '", [("tools", 2, False)]),
        ("repeat('x', 100000)", [("tools", 2, True)]),
        ("[]::INT[]", [("tools", 2, False)]),
        ("[1]", [("tools", 2, True)]),
        ("{'a': NULL::INT, 'b': {'c': NULL::VARCHAR}}", []),
        ("{'a': NULL::INT, 'b': {'c': ''}}", [("tools", 2, False)]),
        ("{'a': NULL::INT, 'b': {'c': 'x'}}", [("tools", 2, True)]),
        ("MAP {'a': 1}", [("tools", 2, True)]),
        ("'x'::BLOB", [("tools", 2, True)]),
        ("'nan'::DOUBLE", []),
        ("false", [("tools", 2, False)]),
        ("'auto'", [("tools", 2, True)]),
    ],
)
def test_values_of_parquet_count_as_those_of_json(value: str, fields: list[tuple[str, int, bool]]) -> None:
    upload = inspected(parquet(f"SELECT 't' AS text, {value} AS tools FROM range(2)"))
    assert unused(upload) == fields


def test_large_values_of_parquet_are_not_read_and_count_in_every_row() -> None:
    query = "SELECT 't' AS text, CASE WHEN i = 0 THEN range(50000) END AS images FROM range(2) t(i)"
    assert unused(inspected(parquet(query))) == [("images", 2, True)]
    assert unused(inspected(parquet(query.replace("50000", "500")))) == [("images", 1, True)]


def test_null_filled_keys_of_messages_in_parquet_count_as_absent() -> None:
    turns = (
        "[{'from': 'human', 'value': 'q', 'role': NULL, 'weight': NULL, 'tool_calls': NULL::INT[]}, "
        "{'from': 'gpt', 'value': 'a', 'role': NULL, 'weight': 1.0, 'tool_calls': NULL}]"
    )
    upload = inspected(parquet(f"SELECT {turns} AS conversations"))
    assert (unused(upload), upload.problems, upload.found.rows) == ([], [], 1)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("tools", Meaning.TOOLS),
        ("Tool-Calls", Meaning.TOOLS),
        ("toolCalls", Meaning.TOOLS),
        ("reasoning_content", Meaning.REASONING),
        ("non_preferred_output", Meaning.PREFERENCE),
        ("rejected_answer_2", Meaning.PREFERENCE),
        ("tool_choice", None),
        ("kto_tag", Meaning.LABEL),
        ("images", Meaning.MEDIA),
        ("train_detail", Meaning.MASK),
        ("id", None),
        ("category", None),
        ("prompt_id", None),
        ("text", None),
        ("source", None),
    ],
)
def test_names_are_matched_without_case_and_separators(name: str, meaning: Meaning | None) -> None:
    assert meaning_of(name) is meaning
    assert not is_turn_flag(name)


def test_the_documented_names_have_the_documented_meaning() -> None:
    page = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text()
    table = page.partition("| What it says |")[2].partition("\n\n")[0]
    found = dict(re.findall(r"(?m)^\| ([^|]+?) \| (`[^|]+) \|$", table))
    assert set(found) == set(Meaning) - {Meaning.PART}
    for meaning, names in found.items():
        assert {meaning_of(name) for name in re.findall(r"`([\w-]{2,})`", names)} == {meaning}
