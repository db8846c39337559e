"""Records of JSON files, each with the line where it begins; read as a stream, one record in memory."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO

from app.core.datasets.limits import Limits, check_blank_lines, too_long
from app.core.datasets.problems import Record, bad_utf8, not_utf8, unreadable
from app.core.datasets.readers.json_values import BadJson, RepeatedKey, decode_json, decode_json_at, kind_of
from app.core.datasets.rows import Problem
from app.core.errors.datasets import DatasetInvalid

_CHUNK_CHARACTERS = 1 << 20
_NOT_SPACE = re.compile(r"[^ \t\r\n]")


def read_lines(stream: BinaryIO, limits: Limits) -> Iterator[Record]:
    """Yield the records of a file with one JSON object a line."""
    line = blank_lines = 0
    while raw := stream.readline(limits.max_row_bytes + 1):
        line += 1
        if len(raw) > limits.max_row_bytes:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(_CHUNK_CHARACTERS)
            yield line, Problem(line, too_long(limits))
        elif raw.isspace():
            blank_lines += 1
            check_blank_lines(blank_lines, limits)
        else:
            yield line, _parse_line(line, raw)


def read_values(text: TextIO, limits: Limits) -> Iterator[Record]:
    """Yield the records of a JSON array, or of JSON objects spread over lines."""
    values = _JsonText(text, limits)
    if values.next_character() == "[":
        yield from _read_array(values)
        return
    while values.next_character():
        yield values.take_record()


class _JsonText:
    """JSON text that is read in pieces, and the line of the present position."""

    def __init__(self, text: TextIO, limits: Limits) -> None:
        self._text = text
        self._limits = limits
        self._buffer = ""
        self._position = 0
        self._line = 1

    def next_character(self) -> str:
        """Returns the next character that is no space, without consuming it; empty at the end."""
        while True:
            found = _NOT_SPACE.search(self._buffer, self._position)
            self._advance(found.start() if found else len(self._buffer))
            if found:
                return found[0]
            if not self._read_more():
                return ""

    def skip(self) -> None:
        """Consume the next character."""
        self._advance(self._position + 1)

    def take_record(self) -> Record:
        """Consume the value that begins here. Raises DatasetInvalid where it has no end."""
        line, (value, end) = self._line, self._decode()
        raw = self._buffer[self._position : end]
        if len(raw) > self._limits.max_row_bytes:
            raise self.broken(too_long(self._limits))
        self._advance(end)
        if bad := bad_utf8(raw):
            return line, Problem(line, bad)
        return line, _checked_object(line, value)

    def broken(self, message: str, offset: int = 0) -> DatasetInvalid:
        """Returns the error for text that can't be read from `offset` characters ahead."""
        line_breaks = self._buffer.count("\n", self._position, self._position + offset)
        return unreadable(self._line + line_breaks, message)

    def _decode(self) -> tuple[object, int]:
        while True:
            try:
                value, end = decode_json_at(self._buffer, self._position)
            except BadJson as error:
                self._read_more_after(error)
                continue
            # A number at the end of the buffer may have more digits.
            if end < len(self._buffer) or not self._read_more():
                return value, end

    def _read_more_after(self, error: BadJson) -> None:
        """Read more text where the value may only be incomplete. Raises DatasetInvalid where it is wrong."""
        if error.position is None:
            raise self.broken(str(error))
        offset = error.position - self._position
        if len(self._buffer) - self._position > self._limits.max_row_bytes:
            raise self.broken(f"{too_long(self._limits)} Unless it is {error}")
        if not self._read_more():
            raise self.broken(str(error), offset)

    def _read_more(self) -> bool:
        # Twice as much each time: a long row is decoded again from its start after each piece.
        rest = self._buffer[self._position :]
        more = self._text.read(max(_CHUNK_CHARACTERS, len(rest)))
        self._buffer, self._position = rest + more, 0
        return bool(more)

    def _advance(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position


def _read_array(text: _JsonText) -> Iterator[Record]:
    text.skip()
    while text.next_character() != "]":
        yield text.take_record()
        mark = text.next_character()
        if mark == ",":
            text.skip()
        elif mark != "]":
            end = (
                "expected a comma or the end of the array"
                if mark
                else "the array has no end: part is missing"
            )
            raise text.broken(f"{end}.")
    text.skip()
    if text.next_character():
        raise text.broken("there is more after the end of the array.")


def _parse_line(line: int, raw: bytes) -> dict[str, Any] | Problem:
    try:
        return _checked_object(line, decode_json(raw.decode().rstrip()))
    except UnicodeDecodeError as error:
        return Problem(line, not_utf8(raw[error.start]))
    except BadJson as error:
        if error.position is not None and raw[error.position :].strip() == b"," and raw.isascii():
            return Problem(line, "a comma follows the JSON object. Remove it: each line is one object.")
        return Problem(line, str(error) if error.position is None else f"{error} Expected one JSON object.")


def _checked_object(line: int, value: object) -> dict[str, Any] | Problem:
    if isinstance(value, RepeatedKey):
        return Problem(line, str(value))
    if not isinstance(value, dict):
        return Problem(line, f"expected a JSON object, found {kind_of(value)}.")
    return value
