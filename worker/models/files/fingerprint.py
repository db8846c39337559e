"""Checks whether a base model still has the weights that an adapter was trained on.

A fingerprint covers every tensor's name, type and shape, and its first, middle and last bytes: other weights
under the same name are found without a read of them all. A change of a few numbers elsewhere is not seen.
How the tensors are split into files makes no difference.
"""

import hashlib
import json
import os
import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.core.adapters.files import RECORD
from app.core.errors.base_models import BaseModelChanged
from worker.models.files.reading import read_json_object, reading
from worker.models.files.versions import FileVersion, read_version

_METHOD = "sampled-1"
_SAMPLE_BYTES = 4096
INDEX_FILE = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_KEY = "base_weights"


@dataclass(frozen=True)
class StoredTensor:
    """Type and shape of a tensor in a safetensors file, and where its bytes begin and end."""

    path: Path
    type: str
    shape: list[int]
    begin: int
    end: int


def take_fingerprint(folder: Path) -> str:
    """Return the fingerprint of the weights in a base model's folder. Raises ModelUnreadable."""
    with reading_weights(folder):
        return _compute(folder, _describe_files(folder))


def reading_weights(folder: Path) -> AbstractContextManager[None]:
    """Raise ModelUnreadable for any error that the weights in a folder cause within the block."""
    hint = "Weights must be whole safetensors files. Copy them again, and the index of the shards with them."
    return reading(f"The weights in {folder.name!r}", hint=hint)


def check_base(adapter: Path, base: Path, name: str) -> None:
    """Raise BaseModelChanged where an adapter's record has the fingerprint of other weights.

    An adapter without a record, or with a record without a fingerprint, passes.
    """
    recorded = _read_recorded(adapter)
    if recorded and recorded.startswith(_METHOD) and recorded != take_fingerprint(base):
        raise BaseModelChanged(
            f"The base model {name!r} has other weights now than when the adapter was trained on it.",
            hint="Put the base model that it was trained on back into the models folder, or train again.",
        )


def find_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load; some folders have others, too.

    Those that an index names may be missing, as while they are downloaded.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / INDEX_FILE).is_file():
        names = read_json_object(folder / INDEX_FILE)["weight_map"].values()
        return [folder / name for name in dict.fromkeys(names)]
    return sorted(folder.glob("*.safetensors"))


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """The tensors that transformers would load from a folder, by name. Raises ModelUnreadable."""
    with reading_weights(folder):
        tensors = {name: tensor for path in find_files(folder) for name, tensor in read_header(path).items()}
        if not tensors:
            raise ValueError("there are no safetensors")
        return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name (the format: github.com/huggingface/safetensors)."""
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 0 < length <= path.stat().st_size:
            raise ValueError(f"{path.name} is cut off, or no safetensors file")
        entries: Any = json.loads(file.read(length))
    if not isinstance(entries, dict):
        raise ValueError(f"{path.name} is no safetensors file")
    entries.pop("__metadata__", None)
    start = 8 + length
    tensors = {
        name: StoredTensor(
            path, one["dtype"], one["shape"], *(start + place for place in one["data_offsets"])
        )
        for name, one in entries.items()
    }
    if max((tensor.end for tensor in tensors.values()), default=0) > path.stat().st_size:
        raise ValueError(f"{path.name} is cut off")
    return tensors


def _describe_files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = [(path.name, path.stat()) for path in folder.glob("*.safetensors*")]
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found))


@lru_cache(maxsize=64)
def _compute(folder: Path, _files: tuple[tuple[str, int, int], ...]) -> str:
    """The fingerprint, cached while the files do not change, since every request to an adapter needs it."""
    total = hashlib.sha256()
    tensors = read_headers(folder)
    opened = {path: os.open(path, os.O_RDONLY) for path in {tensor.path for tensor in tensors.values()}}
    try:
        for name, tensor in sorted(tensors.items()):
            total.update(f"{name} {tensor.type} {tensor.shape}\n".encode())
            total.update(_sample(opened[tensor.path], tensor))
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return f"{_METHOD}:{total.hexdigest()}"


def _sample(descriptor: int, tensor: StoredTensor) -> bytes:
    """All bytes of a small tensor; the first, middle and last bytes of a large one."""
    begin, end = tensor.begin, tensor.end
    if end - begin <= 3 * _SAMPLE_BYTES:
        return os.pread(descriptor, end - begin, begin)
    places = (begin, (begin + end) // 2, end - _SAMPLE_BYTES)
    return b"".join(os.pread(descriptor, _SAMPLE_BYTES, place) for place in places)


def _read_recorded(adapter: Path) -> str | None:
    """The fingerprint in an adapter's record, which another program may have written; None: it has none."""
    version = read_version(adapter / RECORD)
    return _read_record(version) if version else None


@lru_cache(maxsize=1024)
def _read_record(version: FileVersion) -> str | None:
    """Cached while the record does not change, since every request to the adapter needs it."""
    try:
        found = json.loads(Path(version.path).read_bytes())[_KEY]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
