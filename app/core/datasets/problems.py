"""What every reader of uploads says in the same words.

A record that can't be read is a Problem in its place. Where nothing after it could be read either (an array
broken in the middle, a quote that is never closed), DatasetInvalid is raised: half a file is not a dataset.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from app.core.datasets.rows import Problem
from app.core.errors.datasets import DatasetInvalid

# A record, or why there is none, with the line where it begins.
Record = tuple[int, dict[str, Any] | Problem]


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def bad_utf8(text: str) -> str | None:
    """What is wrong with text in which bytes that are not UTF-8 stand as lone surrogates (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return not_utf8(ord(text[error.start]) & 0xFF)
    return None


def not_utf8(byte: int) -> str:
    return f"not UTF-8 text, it has the byte 0x{byte:02x}. Save the file as UTF-8."


def unreadable(line: int, message: str) -> DatasetInvalid:
    """What to raise where nothing after a line can be read."""
    return DatasetInvalid(
        f"Line {line}: {message}",
        problems=[{"line": line, "message": message}],
        hint="Nothing after it can be read. Mend it there and upload again.",
    )
