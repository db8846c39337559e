"""Range requests on stored files (RFC 9110, section 14), from any artifact store.

Several files are sent as one tar. Its layout follows from the sizes of the files, so that it has ranges, too.
"""

import base64
import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from anyio import CapacityLimiter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.api.http.digits import bounded_int
from app.api.http.store_threads import read_in_store_threads
from app.core.exports.results import ExportedFile
from app.core.storage.artifacts import ArtifactStore

_CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")


@dataclass(frozen=True)
class Segment:
    """A part of a download: its size in bytes, and how to open it."""

    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Download:
    """A file to download, made of segments."""

    name: str
    media_type: str
    segments: Sequence[Segment]
    etag: str
    sha256: str | None = None

    @property
    def size(self) -> int:
        """The size of the whole file in bytes."""
        return sum(segment.size for segment in self.segments)


def one_file(store: ArtifactStore, artifact: str, file: ExportedFile) -> Download:
    """The download of one stored file."""
    segment = Segment(file.size_bytes, lambda: store.open(f"{artifact}/{file.name}"))
    return Download(file.name, "application/octet-stream", [segment], file.sha256, file.sha256)


def tar_of(store: ArtifactStore, artifact: str, files: Sequence[ExportedFile], folder: str) -> Download:
    """The download of all files in one tar, under a folder. Entries have no time: its bytes never change."""
    segments: list[Segment] = []
    for file in files:
        entry = tarfile.TarInfo(f"{folder}/{file.name}")
        entry.size = file.size_bytes
        segments.append(_in_memory(entry.tobuf()))
        segments.extend(one_file(store, artifact, file).segments)
        segments.append(_in_memory(bytes(-file.size_bytes % tarfile.BLOCKSIZE)))
    segments.append(_in_memory(bytes(2 * tarfile.BLOCKSIZE)))
    etag = hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode()).hexdigest()
    return Download(f"{folder}.tar", "application/x-tar", segments, etag)


def answer(request: Request, download: Download, threads: CapacityLimiter) -> Response:
    """The whole file, or the range that the request names. Raises HTTPException (416)."""
    etag = f'"{download.etag}"'
    headers = {
        "accept-ranges": "bytes",
        "etag": etag,
        "content-disposition": f'attachment; filename="{download.name}"',
    }
    if download.sha256:
        # RFC 9530: the digest of the whole file, also where a part is sent.
        digest = base64.b64encode(bytes.fromhex(download.sha256)).decode()
        headers |= {"repr-digest": f"sha-256=:{digest}:", "x-checksum-sha256": download.sha256}
    start, end, status = 0, download.size, 200
    wanted = request.headers.get("range")
    # A file that has changed since is sent whole: its parts would not fit together.
    if wanted and request.headers.get("if-range", etag) == etag and (found := _parse(wanted, download.size)):
        (start, end), status = found, 206
        headers["content-range"] = f"bytes {start}-{end - 1}/{download.size}"
    headers["content-length"] = str(end - start)
    chunks = read_in_store_threads(threads, _read(download.segments, start, end))
    return StreamingResponse(chunks, status, headers, media_type=download.media_type)


def _parse(header: str, size: int) -> tuple[int, int] | None:
    """(start, end) of a single range; None where the header is not understood, and the whole file is sent."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = (bounded_int(digits) if digits else None for digits in match.groups())
    if first is None:
        start, end = max(size - (last or 0), 0), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
    if first is not None and last is not None and last < first:
        return None
    if start >= size or start >= end:
        raise HTTPException(
            416, f"There are only {size} bytes.", headers={"content-range": f"bytes */{size}"}
        )
    return start, end


def _read(segments: Sequence[Segment], start: int, end: int) -> Iterator[bytes]:
    """The bytes from start to end of the joined segments, in chunks."""
    offset = 0
    for segment in segments:
        first, last = max(start - offset, 0), min(end - offset, segment.size)
        if first < last:
            with segment.open() as source:
                source.seek(first)
                left = last - first
                while left and (chunk := source.read(min(_CHUNK_BYTES, left))):
                    left -= len(chunk)
                    yield chunk
        offset += segment.size


def _in_memory(content: bytes) -> Segment:
    return Segment(len(content), lambda: BytesIO(content))
