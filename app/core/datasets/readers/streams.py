"""Uploads as streams of bytes: gzip is unpacked, other encodings become UTF-8, damage is DatasetInvalid."""

import codecs
import gzip
import io
import zlib
from pathlib import Path

from app.core.datasets.limits import Limits, describe_bytes
from app.core.errors.datasets import DatasetInvalid

BUFFER_BYTES = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"


def open_plain(path: Path, is_gzip: bool, limits: Limits) -> io.BufferedReader:
    """Open a file's bytes, unpacked where it is gzipped."""
    raw = _Gunzipped(path, limits.max_unpacked_bytes) if is_gzip else io.FileIO(path)
    return io.BufferedReader(raw, BUFFER_BYTES)


class _Gunzipped(io.RawIOBase):
    """The content of a gzip file, up to a limit: a few kilobytes can unpack to terabytes."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._file = gzip.open(path)  # noqa: SIM115  (closed with this stream)
        self._max_bytes = max_bytes
        self._bytes_left = max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            count = self._file.readinto(buffer)
        except EOFError:
            raise DatasetInvalid(
                "The gzip file ends too early: part of it is missing.", hint="Pack it and upload it again."
            ) from None
        except (gzip.BadGzipFile, zlib.error):
            raise DatasetInvalid(
                "The gzip file is damaged.", hint="Pack it and upload it again; `gzip -t` checks a file."
            ) from None
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise DatasetInvalid(
                f"The file unpacks to more than {describe_bytes(self._max_bytes)}.",
                hint="Split it, or raise TUNESMITH_MAX_UNPACKED_BYTES.",
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def as_utf8(stream: io.BufferedReader, encoding: str) -> io.BufferedReader:
    """Returns the text as a stream of UTF-8 without a byte order mark."""
    if encoding == "utf-8-sig":
        stream.read(len(codecs.BOM_UTF8))
    if encoding.startswith("utf-8"):
        return stream
    return io.BufferedReader(_Recoded(stream, encoding), BUFFER_BYTES)


class _Recoded(io.RawIOBase):
    """UTF-16 or UTF-32 text as UTF-8."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._text = io.TextIOWrapper(stream, encoding, newline="")
        self._pending = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._text.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._pending:
            try:
                self._pending = self._text.read(BUFFER_BYTES).encode()
            except UnicodeDecodeError:
                encoding = self._text.encoding.upper()
                raise DatasetInvalid(
                    f"The file begins as {encoding}, but is damaged or cut off.", hint="Save it as UTF-8."
                ) from None
        part, self._pending = self._pending[: len(buffer)], self._pending[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
