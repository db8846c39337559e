"""Detects what an upload is from its content alone: gzipped or not, its encoding, its kind of file.

`open_source` opens any of them as a stream of UTF-8. Knows nothing of rows.
"""

import codecs
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, BinaryIO, TextIO

from app.core.datasets.limits import Limits
from app.core.datasets.readers.streams import BUFFER_BYTES, GZIP_MAGIC, as_utf8, open_plain
from app.core.errors.datasets import DatasetInvalid

_SAMPLE_BYTES = 1 << 16
_PARQUET = b"PAR1"
_TAR = (257, b"ustar")
_FOREIGN = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "Unpack it, or save the sheet as CSV"),
    b"PK\x05\x06": ("an empty zip archive", "Put the rows into a plain file"),
    GZIP_MAGIC: ("gzip inside gzip", "Pack it once"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "Unpack it, or pack it with gzip"),
    b"BZh": ("packed with bzip2", "Unpack it, or pack it with gzip"),
    b"\xfd7zXZ\x00": ("packed with xz", "Unpack it, or pack it with gzip"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it"),
    b"%PDF-": ("a PDF", "Put its text into rows"),
    b"ARROW1": ("an Arrow file", "Save it as Parquet"),
    b"SQLite format 3\x00": ("a SQLite database", "Export the table as CSV"),
}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_ACCEPTED = "JSON lines, a JSON array, CSV, TSV or Parquet, plain or packed with gzip"


class Container(StrEnum):
    """The kind of file that rows come in."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    HUB = "hub"  # no file: the rows come from the Hub's client


@dataclass(frozen=True)
class Source:
    """An open upload and what was detected; it is read through `stream` or `text`, not through both.

    In `text`, bytes that are not UTF-8 are lone surrogates (PEP 383), and line breaks are unchanged.
    """

    container: Container
    is_gzip: bool
    encoding: str | None
    sample: str
    path: Path
    stream: BinaryIO
    text: TextIO


@contextmanager
def open_source(path: Path, limits: Limits) -> Iterator[Source]:
    """Open an upload as UTF-8 text without a byte order mark; for Parquet, `path` is the unpacked file.

    Raises DatasetInvalid for a file that is neither text nor Parquet. Reading raises it too, where the file
    is damaged or unpacks to more than the limit.
    """
    with path.open("rb") as file:
        is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    with open_plain(path, is_gzip, limits) as stream:
        head = stream.read(_SAMPLE_BYTES)
    _refuse_foreign(head)
    if head.startswith(_PARQUET):
        with _unpacked(path, is_gzip, limits) as plain, plain.open("rb") as stream, _as_text(stream) as text:
            yield Source(Container.PARQUET, is_gzip, None, "", plain, stream, text)
        return
    encoding = _detect_encoding(head)
    sample = _decode_sample(head, encoding)
    with as_utf8(open_plain(path, is_gzip, limits), encoding) as stream, _as_text(stream) as text:
        yield Source(_detect_container(sample), is_gzip, encoding, sample, path, stream, text)


@contextmanager
def _unpacked(path: Path, is_gzip: bool, limits: Limits) -> Iterator[Path]:
    """Unpack a gzipped Parquet file to a temporary file: Parquet is read from its end."""
    if not is_gzip:
        yield path
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="unpacked-") as copy:
        with open_plain(path, is_gzip, limits) as stream:
            shutil.copyfileobj(stream, copy, BUFFER_BYTES)
        copy.flush()
        yield Path(copy.name)


def _as_text(stream: IO[bytes]) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")


def _refuse_foreign(head: bytes) -> None:
    found = next((said for magic, said in _FOREIGN.items() if head.startswith(magic)), None)
    offset, magic = _TAR
    if head[offset:].startswith(magic):
        found = ("a tar archive", "Unpack it")
    if found:
        raise DatasetInvalid(f"The file is {found[0]}.", hint=f"{found[1]}, then upload {_ACCEPTED}.")


def _detect_encoding(head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    # Without a mark: a table begins with ASCII characters, which in UTF-16 alternate with zero bytes.
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8"


def _decode_sample(head: bytes, encoding: str) -> str:
    """Returns the beginning of the text. Raises DatasetInvalid where the file is binary."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    sample = decoder.decode(head)
    # Text may have a few: form feeds, terminal colours, a stray byte in a scraped page.
    if "\0" in sample or len(_CONTROL_CHARACTERS.findall(sample)) > len(sample) // 50:
        raise DatasetInvalid("The file is binary, not text.", hint=f"Upload {_ACCEPTED}.")
    return sample


def _detect_container(sample: str) -> Container:
    lines = [line.strip() for line in sample.split("\n") if line.strip()]
    first = lines[0] if lines else ""
    if first.startswith("["):
        return Container.JSON
    if first.startswith("{"):
        return Container.JSON if _is_spread_over_lines(lines) else Container.JSONL
    objects = sum(line.startswith("{") for line in lines)
    return Container.JSONL if not lines or 2 * objects > len(lines) else Container.CSV


def _is_spread_over_lines(lines: list[str]) -> bool:
    """Whether the first object goes on in the next line, as pretty-printers write it."""
    first, second = lines[0], lines[1] if len(lines) > 1 else ""
    goes_on = first == "{" or first.endswith(("[", ":")) or (first.endswith(",") and not first.endswith("},"))
    return goes_on and bool(second) and not second.startswith("{")
