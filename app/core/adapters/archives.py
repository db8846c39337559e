"""Unpacks an uploaded PEFT folder: a zip or a tar, gzipped or not. Trusts nothing in it.

Only the files of a LoRA adapter are written, under their own base names, into one flat folder; no path of the
archive is ever joined to a local path. Other files are ignored; an archive with an unsafe entry (a link, a
device, a path that leaves the archive) is refused as a whole.
"""

import errno
import gzip
import lzma
import math
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from app.core.adapters.files import CONFIG, RECORD, TEMPLATE, TOKENIZER_CONFIG, WEIGHTS
from app.core.datasets.limits import describe_bytes
from app.core.errors.adapters import AdapterInvalid

_ADAPTER_FILES = frozenset(
    {CONFIG, WEIGHTS, TEMPLATE, RECORD, TOKENIZER_CONFIG, "README.md"}
    | {"tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"}
    | {"vocab.json", "vocab.txt", "merges.txt"}
)
_PICKLES = (".bin", ".pt", ".pth", ".pkl")
_MAX_ENTRIES = 10_000
_MAX_TEXT_BYTES = 64 << 20  # the limit of any file but the weights and those that are parsed here
_MAX_PARSED_BYTES = 4 << 20
_PARSED = frozenset({CONFIG, RECORD, TEMPLATE, TOKENIZER_CONFIG})
_CHUNK_BYTES = 1 << 20
_MAX_REST_BYTES = 128 << 10
_ENCRYPTED = 1  # a flag of a zip's entry
# Between two entries. zipfile reads its directory, and tarfile the extensions of a header, whatever size they
# claim, and an entry of either takes Python up to 30 us.
_MAX_HEADER_BYTES = 1 << 20
_HINT = "Send the folder that PEFT's save_pretrained wrote, as a zip or a tar."
# What the libraries raise for archives that are not as their formats say.
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(ArithmeticError, EOFError, LookupError, RuntimeError, ValueError),
)


@dataclass(frozen=True)
class _ArchiveEntry:
    """A regular file of an archive."""

    path: PurePosixPath
    size_bytes: int
    source: IO[bytes] | None  # None for entries that are ignored


def unpack(archive: Path, folder: Path, *, max_bytes: int) -> None:
    """Write the adapter's files into `folder`, which exists and is empty.

    They may be at the top of the archive or in one folder of it. Raises AdapterInvalid.
    """
    names: dict[str, PurePosixPath] = {}
    pickles: list[str] = []
    parents: set[PurePosixPath] = set()
    total = 0
    try:
        for number, entry in enumerate(_entries(archive), start=1):
            total += entry.size_bytes
            if number > _MAX_ENTRIES or total > max_bytes:
                raise _too_large(max_bytes)
            if entry.path.name.endswith(_PICKLES):
                pickles.append(entry.path.name)
            if entry.source is None:
                continue
            if entry.path.name in names:
                raise AdapterInvalid(
                    f"The archive holds {entry.path.name} twice: {names[entry.path.name]} and {entry.path}.",
                    hint="Pack one adapter alone.",
                )
            names[entry.path.name] = entry.path
            parents.add(entry.path.parent)
            _copy(entry, folder)
    except _BROKEN as error:
        raise AdapterInvalid(f"The archive can't be read: {error}.", hint="Pack it again.") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise  # of this machine: a full disk
        raise AdapterInvalid(f"The archive can't be read: {error}.", hint="Pack it again.") from error
    _check_whole(names, parents, pickles)


def _check_whole(names: dict[str, PurePosixPath], parents: set[PurePosixPath], pickles: list[str]) -> None:
    if WEIGHTS not in names and pickles:
        raise AdapterInvalid(
            f"The archive holds {pickles[0]}, a pickle, and no {WEIGHTS}: pickles can run code.",
            hint="Load it with PEFT where you trust it, and save it again: that writes safetensors.",
        )
    missing = [name for name in (CONFIG, WEIGHTS) if name not in names]
    if missing:
        raise AdapterInvalid(f"The archive has no {missing[0]}.", hint=_HINT)
    if len(parents) > 1:
        raise AdapterInvalid(
            f"The adapter's files lie in several folders: {', '.join(sorted(map(str, parents)))}.",
            hint="Pack one adapter alone, without checkpoints.",
        )


def _entries(archive: Path) -> Iterator[_ArchiveEntry]:
    """Yield every regular file. Raises AdapterInvalid for links, devices and paths that leave the archive."""
    if zipfile.is_zipfile(archive):
        yield from _zip_entries(archive)
    else:
        yield from _tar_entries(archive)


def _zip_entries(archive: Path) -> Iterator[_ArchiveEntry]:
    with archive.open("rb") as file:
        plain = _BoundedFile(file, may_read_rest=True)
        opened = zipfile.ZipFile(cast(BinaryIO, plain))
        plain.left = math.inf
        for member in opened.infolist():
            path = _checked(member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(member.filename, "is a link or a device")
            if member.is_dir():
                continue
            if member.flag_bits & _ENCRYPTED:
                raise AdapterInvalid("The archive is encrypted.", hint="Pack it without a password.")
            if not _is_wanted(path):
                yield _ArchiveEntry(path, member.file_size, None)
                continue
            with opened.open(member) as source:
                yield _ArchiveEntry(path, member.file_size, source)


def _tar_entries(archive: Path) -> Iterator[_ArchiveEntry]:
    with _unzipped(archive) as plain:
        try:
            opened = tarfile.open(fileobj=cast(BinaryIO, plain), mode="r:")  # noqa: SIM115  (closed below)
        except tarfile.ReadError as error:
            raise AdapterInvalid("This is neither a zip nor a tar.", hint=_HINT) from error
        with opened:
            while member := _next_member(opened, plain):
                # Folders are checked too, and never created.
                path = _checked(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise _unsafe(member.name, "is a link or a device")
                yield _ArchiveEntry(
                    path, member.size, opened.extractfile(member) if _is_wanted(path) else None
                )


def _next_member(opened: tarfile.TarFile, plain: "_BoundedFile") -> tarfile.TarInfo | None:
    plain.left = _MAX_HEADER_BYTES
    member = opened.next()
    plain.left = math.inf
    if member is not None and member.size < 0:
        raise tarfile.ReadError(f"{member.name[:200]!r} has {member.size} bytes")
    return member


@contextmanager
def _unzipped(archive: Path) -> Iterator["_BoundedFile"]:
    with archive.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield _BoundedFile(gzip.GzipFile(fileobj=file) if is_gzip else file)


class _BoundedFile:
    """A file that refuses to read more bytes than `left`: those of headers, which are read in one piece."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, *, may_read_rest: bool = False) -> None:
        self._file = file
        self._may_read_rest = may_read_rest
        self.left: float = _MAX_HEADER_BYTES
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size < 0 and self._may_read_rest:
            size = _MAX_REST_BYTES  # zipfile reads the last bytes of the file so
        if not 0 <= size <= self.left:
            raise AdapterInvalid("The archive's headers are far too large.", hint="Pack it again.")
        found = self._file.read(size)
        self.left -= len(found)
        return found


def _checked(name: str) -> PurePosixPath:
    """Returns the path of an entry. Raises AdapterInvalid where it leaves the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _unsafe(name, "leads out of it")
    return path


def _is_wanted(path: PurePosixPath) -> bool:
    """Whether this is one of an adapter's files, at the top or in one folder."""
    return path.name in _ADAPTER_FILES and len(path.parts) <= 2 and path.parts[0] != "__MACOSX"


def _copy(entry: _ArchiveEntry, folder: Path) -> None:
    assert entry.source is not None
    limit = _MAX_PARSED_BYTES if entry.path.name in _PARSED else _MAX_TEXT_BYTES
    if entry.path.name != WEIGHTS and entry.size_bytes > limit:
        raise AdapterInvalid(f"{entry.path.name} has more than {describe_bytes(limit)}.", hint=_HINT)
    left = entry.size_bytes
    with (folder / entry.path.name).open("xb") as target:
        # No more than the declared size is read: a zip's entry may unpack to more.
        while left and (piece := entry.source.read(min(left, _CHUNK_BYTES))):
            target.write(piece)
            left -= len(piece)
    if left or entry.source.read(1):
        raise AdapterInvalid(f"{entry.path} is not as long as the archive says.", hint="Pack it again.")


def _unsafe(name: str, what: str) -> AdapterInvalid:
    return AdapterInvalid(f"The archive's entry {name[:200]!r} {what}.", hint=_HINT)


def _too_large(max_bytes: int) -> AdapterInvalid:
    return AdapterInvalid(
        f"The archive unpacks to more than {describe_bytes(max_bytes)} or {_MAX_ENTRIES:,} files.",
        hint="Send the adapter without checkpoints, or raise TUNESMITH_MAX_UNPACKED_BYTES.",
    )
