"""Messages that the readers and parsers of uploads share.

A record that can't be read becomes a Problem with its line. Where nothing after it could be read either (an
array broken in the middle, a quote that is never closed), DatasetInvalid is raised for the whole file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from app.core.datasets.rows import Problem
from app.core.errors.datasets import DatasetInvalid

# The line where a record begins, and the record, or the problem that it could not be read.
Record = tuple[int, dict[str, Any] | Problem]

_MAX_NAMES_SHOWN = 20
MAX_CHARACTERS_SHOWN = 60


class BadRow(ValueError):
    """A row can't be used; the message says why."""


def quoted(names: Iterable[str]) -> str:
    """Returns names for a message: quoted, printable, cut, and no more than twenty of them."""
    names = list(names)
    listed = ", ".join(map(shown, names[:_MAX_NAMES_SHOWN])) or "none"
    more = len(names) - _MAX_NAMES_SHOWN
    return f"{listed} and {more} more" if more > 0 else listed


def shown(name: str) -> str:
    """Returns one name for a message: quoted, printable, and cut where it is long."""
    return repr(name if len(name) <= MAX_CHARACTERS_SHOWN else name[:MAX_CHARACTERS_SHOWN] + "…")


def shown_column_map(column_map: Mapping[str, str]) -> str:
    """Returns a column map as JSON for a message. It escapes half of a surrogate pair, which is not UTF-8."""
    return json.dumps(column_map, ensure_ascii=False).encode(errors="backslashreplace").decode()


def repeated(names: Iterable[str]) -> list[str]:
    """Returns the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def bad_utf8(text: str) -> str | None:
    """Returns the message for text with lone surrogates, which were bytes that are not UTF-8 (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return not_utf8(ord(text[error.start]) & 0xFF)
    return None


def not_utf8(byte: int) -> str:
    """Returns the message for a byte that is not UTF-8."""
    return f"not UTF-8 text, it has the byte 0x{byte:02x}. Save the file as UTF-8."


def unreadable(line: int, message: str) -> DatasetInvalid:
    """Returns the error for a file in which nothing after a line can be read."""
    return DatasetInvalid(
        f"Line {line}: {message}",
        problems=[{"line": line, "message": message}],
        hint="Nothing after it can be read. Mend it there and upload again.",
    )
