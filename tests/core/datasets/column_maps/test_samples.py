"""The first records of files of every kind, and how they would be read."""

import gzip
import json
from pathlib import Path

import pytest

from app.core.datasets.column_maps.samples import MAX_RECORDS, FileSample, take_sample
from app.core.datasets.limits import Limits
from app.core.datasets.rows import Completion, Conversation
from app.core.errors.datasets import DatasetInvalid
from tests.core.datasets.uploads import parquet

MAP = {"instruction": "question", "output": "answer"}
LINES = b'{"question": "q1", "answer": "a1"}\n{"question": "q2", "answer": "a2"}\n'
PARQUET = parquet("SELECT * FROM (VALUES ('q1', 'a1'), ('q2', 'a2')) AS t(question, answer)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def sample_of(path: Path, content: bytes, column_map: dict[str, str] | None = None) -> FileSample:
    path.write_bytes(content)
    return take_sample(path, limits=Limits(), column_map=column_map)


@pytest.mark.parametrize(
    ("content", "container"),
    [
        (LINES, "jsonl"),
        (b"[" + LINES.strip().replace(b"\n", b",") + b"]", "json"),
        (b"question,answer\nq1,a1\nq2,a2\n", "csv"),
        ("question;answer\nq1;a1\nq2;a2\n".encode("utf-16"), "csv"),
        (PARQUET, "parquet"),
        (gzip.compress(PARQUET), "parquet"),
        (gzip.compress(LINES), "jsonl"),
    ],
)
def test_any_file_shows_its_first_records_and_is_read_with_the_guess(
    path: Path, content: bytes, container: str
) -> None:
    sample = sample_of(path, content)
    assert (sample.container, sample.columns) == (container, ["question", "answer"])
    assert [values for _, values in sample.records] == [json.loads(line) for line in LINES.splitlines()]
    assert sample.reading.column_map == MAP
    assert sample.reading.error is None
    _, row = sample.reading.rows[0]
    assert isinstance(row, Conversation)
    assert [message.content for message in row.messages] == ["q1", "a1"]


def test_a_given_map_is_used_and_none_is_guessed(path: Path) -> None:
    sample = sample_of(path, LINES, {"prompt": "answer", "completion": "question"})
    assert sample.reading.rows[1] == (2, Completion("a2", "q2"))
    sample = sample_of(path, LINES, {})
    assert sample.reading.error
    assert sample.reading.error.message == "The columns 'question', 'answer' fit no known format."


def test_no_more_than_the_first_records_are_read(path: Path) -> None:
    sample = sample_of(path, LINES * 50 + b"{broken")
    assert len(sample.records) == len(sample.reading.rows) == MAX_RECORDS
    sample = sample_of(path, b'{"text": "' + b"x" * 200_000 + b'"}\n' + LINES * 50_000)
    assert len(sample.records) > 1
    assert sum(len(json.dumps(values)) for _, values in sample.records) < 300_000


def test_a_record_that_is_too_long_to_show_is_cut(path: Path) -> None:
    sample = sample_of(path, json.dumps({"text": "x" * 3_000_000, "list": ["y"] * 200_000}).encode())
    [(_, values)] = sample.records
    assert values["text"].endswith("…")
    assert len(json.dumps(values)) < 20_000


def test_an_unused_field_that_changes_learning_is_an_error_with_rows(path: Path) -> None:
    sample = sample_of(path, b'{"prompt": "p", "completion": "c", "rejected": "r"}\n')
    assert sample.reading.error
    assert sample.reading.error.code == "fields_unused"
    assert sample.reading.found
    assert [one.field for one in sample.reading.found.unused_fields] == ["rejected"]
    assert len(sample.reading.rows) == 1


def test_bytes_dates_and_nan_of_parquet_can_be_written_as_json(path: Path) -> None:
    query = (
        "SELECT 'q' AS question, 'a' AS answer, DATE '2024-01-02' AS day, {'bytes': 'x'::BLOB} AS image, "
        "'nan'::DOUBLE AS score"
    )
    [(_, values)] = sample_of(path, parquet(query)).records
    assert values == {
        "question": "q",
        "answer": "a",
        "day": "2024-01-02",
        "image": "(bytes)",
        "score": None,
    }


def test_bad_records_are_problems_of_the_sample(path: Path) -> None:
    sample = sample_of(path, LINES + b'{"question": \n')
    assert sample.reading.found
    assert [problem.line for problem in sample.reading.found.problems] == [3]
    assert len(sample.reading.rows) == 2


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"PK\x03\x04rest", b"PAR1 broken"])
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    with pytest.raises(DatasetInvalid):
        sample_of(path, content)
