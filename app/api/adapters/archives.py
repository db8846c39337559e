"""Writes a zip or a tar of a folder in the artifact store, chunk by chunk.

Entries have a fixed time, so that the same files give the same bytes.
"""

import io
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from app.core.storage.artifacts import ArtifactStore

_CHUNK_BYTES = 1 << 20
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


class _Buffer(io.RawIOBase):
    """The output of a zip writer until `drain()`. It has no `seek`: the writer never rewrites a header."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, chunk: object) -> int:
        self._chunks.append(bytes(chunk))  # type: ignore[call-overload]
        return len(self._chunks[-1])

    def drain(self) -> bytes:
        drained = b"".join(self._chunks)
        self._chunks.clear()
        return drained


def zip_chunks(store: ArtifactStore, artifact: str, names: Sequence[str], folder: str) -> Iterator[bytes]:
    """A zip of these files under `folder`, uncompressed: weights do not shrink."""
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(f"{folder}/{name}", _ZIP_EPOCH)
            entry.external_attr = 0o644 << 16
            with (
                store.open(f"{artifact}/{name}") as source,
                archive.open(entry, "w", force_zip64=True) as target,
            ):
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
                    yield buffer.drain()
    yield buffer.drain()


def tar_chunks(store: ArtifactStore, artifact: str, names: Sequence[str], folder: str) -> Iterator[bytes]:
    """A tar of these files under `folder`."""
    for name in names:
        with store.open(f"{artifact}/{name}") as source:
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = _size(source)
            yield entry.tobuf()
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk
            yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _size(source: BinaryIO) -> int:
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    return size
