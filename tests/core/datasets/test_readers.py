"""Reading JSON, CSV and Parquet, gzipped or in other encodings; refusals of files of other kinds."""

import bz2
import csv
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from app.core.datasets.inspection import refuse_problems
from app.core.datasets.inspector import inspect
from app.core.datasets.limits import Limits, describe_bytes
from app.core.datasets.readers import parquet_files
from app.core.datasets.readers.csv_files import sniff_delimiter
from app.core.datasets.rows import Completion, Conversation, Message, PlainText
from app.core.errors.datasets import DatasetInvalid
from tests.core.datasets.uploads import QUESTION, inspected, parquet
from tests.factories import jsonl

EMOJI = {"prompt": "Grüße 😀", "completion": "你好"}
JSONL = json.dumps(EMOJI, ensure_ascii=False) + "\n"
CSV = "prompt,completion\r\nGrüße 😀,你好\r\n"


def refusal(raw: bytes, **limits: int) -> str:
    with pytest.raises(DatasetInvalid) as refused:
        inspected(raw, **limits)
    assert refused.value.hint
    return refused.value.message


@pytest.mark.parametrize("text", [JSONL, CSV, f"[{JSONL}]"], ids=["jsonl", "csv", "json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_encoding_is_read_plain_or_packed(text: str, encoding: str, packed: bool) -> None:
    raw = text.encode(encoding)
    upload = inspected(gzip.compress(raw) if packed else raw)
    assert [row for _, row in upload.rows] == [Completion(**EMOJI)]
    assert upload.found.upload.encoding == encoding
    assert upload.found.upload.compression == ("gzip" if packed else None)


def test_a_long_utf_16_file_is_converted_in_pieces() -> None:
    rows = [{"text": f"😀{number}" * 50} for number in range(2000)]
    upload = inspected("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-16"))
    assert [row for _, row in upload.rows] == [PlainText(row["text"]) for row in rows]


def zipped() -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("rows.jsonl", JSONL)
        return file.getvalue()


def tarred() -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("rows.jsonl"))
        return file.getvalue()


PACKED = gzip.compress(jsonl([QUESTION] * 5000))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (zipped(), "The file is a zip archive or an Excel workbook."),
        (gzip.compress(tarred()), "The file is a tar archive."),
        (bz2.compress(b"a"), "The file is packed with bzip2."),
        (gzip.compress(PACKED), "The file is gzip inside gzip."),
        (b"%PDF-1.7\n", "The file is a PDF."),
        (bytes(range(256)) * 10, "The file is binary, not text."),
        (b"\x01\x00\x00\x00" * 10, "The file is binary, not text."),
        (b"\x89\x01\x02\x03\x04\x05", "The file is binary, not text."),
        (PACKED[: len(PACKED) // 2], "The gzip file ends too early: part of it is missing."),
        (PACKED[:-4], "The gzip file ends too early: part of it is missing."),
        (PACKED[:100] + b"x" * 50 + PACKED[150:], "The gzip file is damaged."),
        (JSONL.encode("utf-16")[:-1], "The file begins as UTF-16, but is damaged or cut off."),
        (b"PAR1" + b"\0" * 100, "The Parquet file can't be read: it is damaged or cut off."),
        (b"Once upon a time", "The columns 'Once upon a time' fit no known format."),
        (b'[{"text": "a"},\n{"text": }]', "Line 2: not valid JSON: Expecting value."),
        (b'[{"text": "a"}\n{"text": "b"}]', "Line 2: expected a comma or the end of the array."),
        (b'[{"text": "a"}', "Line 1: the array has no end: part is missing."),
        (b'[{"text": "a"}]\n{"text": "b"}', "Line 2: there is more after the end of the array."),
        (b"[" * 100_000, "Line 1: the JSON is nested too deeply."),
        (b'prompt,completion\na,b\nc,"d\ne', "Line 3: a quote is opened in this row and never closed."),
        (b"prompt,prompt,completion\n", "Line 1 names the column 'prompt' more than once."),
        (b"text" + b",text" * 10_000, "Line 1: it names 10001 columns, the limit is 10000."),
        (b'"prompt"x,completion\n', "Line 1: it names the columns, but text follows a closing quote."),
        (b"prompt,completion\n", "The file names columns but has no rows."),
        (b"question;answer\na;b\n", "The columns 'question', 'answer' fit no known format."),
    ],
    # Packed files hold the time they were made at, and every process must find the same tests.
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_a_file_of_another_kind_is_refused_and_its_kind_named(raw: bytes, said: str) -> None:
    assert refusal(raw).startswith(said)


def test_a_gzip_bomb_stops_at_the_limit() -> None:
    assert refusal(gzip.compress(b" " * (1 << 22)), max_unpacked_bytes=1 << 20) == (
        "The file unpacks to more than 1 MiB."
    )


LONG = "repeat('a', 100000)"


@pytest.mark.parametrize(
    "column",
    [
        f"{LONG} AS text",
        f"{LONG}::BLOB AS text",
        f"[{{'role': 'user', 'content': {LONG}}}] AS messages",
        f"MAP {{1: {LONG}}} AS text",
        f"[{LONG}]::VARCHAR[1] AS text",
    ],
)
def test_a_parquet_bomb_is_refused_before_its_rows_are_read(
    column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "_MAX_BLOCK_BYTES", 5 << 20)
    bomb = parquet(f"SELECT {column}, 1 AS block, 2 AS bytes FROM range(100)")
    assert len(bomb) < 20_000
    assert refusal(bomb) == "Rows 1 to 2048 together take more than 5 MiB."
    few = parquet(f"SELECT {column} FROM range(30)")
    assert refusal(few, max_unpacked_bytes=1 << 20) == "The rows take more than 1 MiB."


def test_a_json_array_gives_the_line_where_each_row_begins() -> None:
    raw = b'[\n {"text":\n "a"},\n 5, {"text": "b", "text": "c"},\n {"text": "\xff"},\n {"text": "d"},\n]\n'
    upload = inspected(raw)
    assert upload.rows == [(2, PlainText("a")), (6, PlainText("d"))]
    assert upload.problems == [
        "Line 4: expected a JSON object, found a number.",
        "Line 4: the key 'text' is there twice in one object. Keep one of them.",
        "Line 5: not UTF-8 text, it has the byte 0xff. Save the file as UTF-8.",
    ]


def test_objects_spread_over_lines_are_read_one_after_the_other() -> None:
    raw = "\n".join(json.dumps(QUESTION, indent=2) for _ in range(3)).encode()
    assert [line for line, _ in inspected(raw).rows] == [1, 5, 9]


def test_a_row_of_an_array_may_lie_across_pieces_and_has_a_limit() -> None:
    rows = [{"text": character * 700_000} for character in "abcde"]
    raw = json.dumps(rows).encode()
    assert [row for _, row in inspected(raw).rows] == [PlainText(row["text"]) for row in rows]
    for broken in (raw, raw[:600_000]):
        said = refusal(broken, max_row_bytes=1 << 19)
        assert said.startswith("Line 1: the row is longer than 512 KiB. Shorten it, or raise")


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\r\t")).filter(str.strip)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from([",", ";", "\t"]))
def test_the_output_of_a_csv_writer_is_read(pairs: list[tuple[str, str]], delimiter: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "completion"), *pairs])
    upload = inspected(written.getvalue().encode())
    assert [row for _, row in upload.rows] == [Completion(*pair) for pair in pairs]
    assert upload.found.upload.delimiter == delimiter


def test_csv_gives_the_line_where_each_row_begins_and_goes_on_after_a_bad_one() -> None:
    raw = b'prompt,completion\n"a\nb",c\n\nd\n"e"x,f\ng,h,i\n,\nj,\nk,\xe9\nl,"m ""n"""\n'
    upload = inspected(raw)
    assert upload.rows == [(2, Completion("a\nb", "c")), (11, Completion("l", 'm "n"'))]
    counts = "A cell that holds the separator or a line break must stand in double quotes."
    assert upload.problems == [
        f"Line 5: the number of cells is 1, the number of columns 2. {counts}",
        "Line 6: text follows a closing quote. A quote inside a quoted cell must be doubled.",
        f"Line 7: the number of cells is 3, the number of columns 2. {counts}",
        "Line 9: 'completion' is empty. Fill it in, or remove the row.",
        "Line 10: not UTF-8 text, it has the byte 0xe9. Save the file as UTF-8.",
    ]


def test_a_csv_cell_may_hold_messages_as_json() -> None:
    cell = json.dumps([{"role": "user", "content": 'q "x"'}, {"role": "assistant", "content": "a"}])
    written = io.StringIO(newline="")
    csv.writer(written).writerows([["id", "messages"], ["1", cell]])
    [(line, row)] = inspected(written.getvalue().encode()).rows
    assert (line, row) == (2, Conversation((Message("user", 'q "x"'), Message("assistant", "a"))))


def test_carriage_returns_end_lines() -> None:
    assert inspected(b"text,id\ra,1\rb,2\r").rows == [(2, PlainText("a")), (3, PlainText("b"))]


def test_a_csv_row_has_a_limit() -> None:
    said = refusal(b'text\n"' + b"a\n" * 1000, max_row_bytes=1024)
    assert said.startswith("Line 2: the row is longer than 1 KiB.")
    assert said.endswith("Is there a quote that is never closed?")


@pytest.mark.parametrize(
    ("sample", "delimiter"),
    [
        ("prompt,completion\na;b,c;d\n", ","),
        ("prompt;completion\na, b;c, d\n", ";"),
        ("prompt\tcompletion\na, b; c\td\n", "\t"),
        ("the question, or prompt;completion\na;b, c, d\ne;f\n", ";"),
        ('text\n"a;b"\n', ","),
        ("text\nHello, world; and so on\n", "\t"),
        ("prompt,completion\na,b\nc,", ","),
    ],
)
def test_the_separator_is_found(sample: str, delimiter: str) -> None:
    assert sniff_delimiter(sample) == delimiter


CHAT = "[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]"


@pytest.mark.parametrize(
    ("query", "row"),
    [
        ("SELECT 'p' AS prompt, 'c' AS completion, DATE '2026-01-01' AS day", Completion("p", "c")),
        (
            f"SELECT {CHAT} AS messages, 1 AS id",
            Conversation((Message("user", "q"), Message("assistant", "a"))),
        ),
        (f"SELECT {CHAT}::JSON AS messages", Conversation((Message("user", "q"), Message("assistant", "a")))),
        ("SELECT 'Grüße 😀' AS \"text\", now() AS at", PlainText("Grüße 😀")),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_parquet_is_read_plain_or_packed(query: str, row: object, packed: bool) -> None:
    raw = parquet(query)
    upload = inspected(gzip.compress(raw) if packed else raw)
    assert upload.rows == [(1, row)]
    assert upload.found.upload.container == "parquet"


def test_parquet_rows_are_numbered_in_the_order_of_the_file() -> None:
    raw = parquet(
        "SELECT CASE WHEN i = 2999 THEN '' WHEN i = 7 THEN NULL ELSE 'row ' || i END AS text "
        "FROM range(3000) t(i)",
        ", ROW_GROUP_SIZE 2048",
    )
    upload = inspected(raw)
    assert upload.rows[:2] == [(1, PlainText("row 0")), (2, PlainText("row 1"))]
    assert upload.rows[-1] == (2999, PlainText("row 2998"))
    assert [problem.line for problem in upload.found.problems] == [8, 3000]
    with pytest.raises(
        DatasetInvalid, match=r"Row 8: 'text' must be text, found null\. Row 3000: 'text' is empty"
    ):
        refuse_problems(upload.found)


def test_parquet_columns_are_mapped_and_all_are_listed() -> None:
    raw = parquet('SELECT \'q\' AS "the ""question""", \'a\' AS answer, 1 AS id')
    upload = inspected(raw, {"prompt": 'the "question"', "completion": "answer"})
    assert upload.rows == [(1, Completion("q", "a"))]
    assert upload.found.columns == ['the "question"', "answer", "id"]


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    # DuckDB, like most writers, can't write such a file.
    arrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_arrays(
        [arrow.array([["a"]]), arrow.array(["b"]), arrow.array(["c"])], ["id", "text", "text"]
    )
    writer.write_table(table, tmp_path / "rows.parquet")
    assert (
        refusal((tmp_path / "rows.parquet").read_bytes()) == "The file has the column 'text' more than once."
    )


def test_a_parquet_cell_that_unpacks_to_far_more_is_refused_by_the_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the content was read")

    monkeypatch.setattr(parquet_files, "_SUSPICIOUS_BYTES", 1 << 20)
    monkeypatch.setattr(parquet_files, "_MAX_EXPANSION", 10)  # Snappy's most is 21
    bomb = parquet("SELECT repeat('a', 4000000) AS text")
    few = parquet("SELECT repeat('a', 500000) AS text")
    assert inspected(few).found.rows == 1
    monkeypatch.setattr(parquet_files.ParquetRecords, "_check_sizes", read)
    assert "unpacks to more than 10 times its size" in refusal(bomb)


def test_an_unused_parquet_column_that_unpacks_to_far_more_is_not_read_and_counts_in_every_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet_files, "_SUSPICIOUS_BYTES", 1 << 20)
    monkeypatch.setattr(parquet_files, "_MAX_EXPANSION", 10)
    monkeypatch.setattr(parquet_files.ParquetRecords, "_presence", pytest.fail)
    unused = "{'a': [CASE WHEN i > 0 THEN repeat('a', 4000000) END]} AS note"
    found = inspected(parquet(f"SELECT 't' AS text, {unused} FROM range(2) t(i)")).found
    assert [(one.field, one.rows) for one in found.unused_fields] == [("note", 2)]


def test_a_parquet_row_of_any_size_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "_MAX_ROW_BYTES", 2048)
    rows = parquet("SELECT repeat('a', 3000) AS text UNION ALL SELECT 'b'")
    assert "A row takes more than 2 KiB" in refusal(rows, max_row_bytes=1024)


def test_a_parquet_row_has_a_limit() -> None:
    upload = inspected(parquet("SELECT repeat('a', 2000) AS text UNION ALL SELECT 'b'"), max_row_bytes=1024)
    assert upload.rows == [(2, PlainText("b"))]
    assert upload.problems[0].startswith("Line 1: the row is longer than 1 KiB.")


def test_a_parquet_file_without_its_end_is_refused() -> None:
    raw = parquet("SELECT 'p' AS prompt, 'c' AS completion")
    assert refusal(raw[:-20]) == "The Parquet file can't be read: it is damaged or cut off."


def test_a_parquet_path_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "it's [a] *"
    folder.mkdir()
    (folder / "upload").write_bytes(parquet("SELECT 't' AS text"))
    assert inspect(folder / "upload", folder / "rows", limits=Limits()).rows == 1


@pytest.mark.parametrize(("count", "said"), [(16 << 20, "16 MiB"), (1 << 30, "1 GiB"), (1500, "1500 bytes")])
def test_a_limit_is_described_in_the_largest_even_unit(count: int, said: str) -> None:
    assert describe_bytes(count) == said
