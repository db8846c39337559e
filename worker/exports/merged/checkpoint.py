"""Safetensors checkpoints on disk: read tensor by tensor, written shard by shard.

At most one tensor that is read and some rows of one that is written are in memory, whatever the model's size.
Format: https://github.com/huggingface/safetensors (header length, JSON header, tensor bytes in header order).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from app.core.errors.base_models import ModelUnreadable
from worker.models.files.fingerprint import INDEX_FILE, find_files, reading_weights

_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NAMES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
}


@dataclass(frozen=True)
class TensorSpec:
    """The name and shape of a tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class SafetensorsCheckpoint:
    """The tensors of the safetensors files in a folder, by name.

    Raises ModelUnreadable where files are missing, broken, or hold tensors that are not floating-point.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        with reading_weights(folder):
            for path in find_files(folder):
                self._read_header(path)
        if not self._files:
            raise ModelUnreadable(f"There are no safetensors in {folder.name!r}.")

    @property
    def tensors(self) -> list[TensorSpec]:
        """All tensors, in the order of the files."""
        return [TensorSpec(name, shape) for name, shape in self._shapes.items()]

    @property
    def elements(self) -> int:
        """The number of elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._shapes[name]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor. The file is mapped for this tensor alone, so that earlier pages leave memory."""
        with safe_open(self._files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def read_together(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Read several tensors, each file mapped once; the operating system may evict their pages."""
        found: dict[str, torch.Tensor] = {}
        for path in dict.fromkeys(self._files[name] for name in names):
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in names if self._files[name] == path}
        return found

    def _read_header(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                view = file.get_slice(name)
                if view.get_dtype() not in _DTYPES:
                    raise ValueError(f"{name} is of type {view.get_dtype()}, not a floating-point number")
                self._files[name] = path
                self._shapes[name] = tuple(view.get_shape())


def split_into_shards(
    tensors: Sequence[TensorSpec], dtype_of: Callable[[str], torch.dtype], max_shard_bytes: int
) -> list[list[TensorSpec]]:
    """Group the tensors into shards in their order; a shard exceeds the limit only for a single tensor."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in tensors:
        size = tensor.elements * dtype_of(tensor.name).itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def shard_names(count: int, stem: str, suffix: str) -> list[str]:
    """The shards' file names in the form that transformers expects."""
    if count == 1:
        return [f"{stem}{suffix}"]
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]


def write_checkpoint(
    folder: Path,
    tensors: Sequence[TensorSpec],
    read_rows: Callable[[str], Iterable[torch.Tensor]],
    *,
    dtype_of: Callable[[str], torch.dtype],
    max_shard_bytes: int,
    announce: Callable[[int], None] = lambda elements: None,
) -> None:
    """Write the tensors, in the blocks of rows that `read_rows(name)` yields, and the index of the shards.

    `dtype_of(name)` is a tensor's type. `announce` gets the number of elements written so far.
    """
    shards = split_into_shards(tensors, dtype_of, max_shard_bytes)
    names = shard_names(len(shards), "model", ".safetensors")
    written = total = 0
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard, dtype_of))
            for tensor in shard:
                for rows in read_rows(tensor.name):
                    # numpy has no bfloat16; it writes the bytes.
                    numbers = rows.to(dtype_of(tensor.name)).contiguous().view(-1)
                    file.write(numbers.view(torch.uint8).numpy().data)
                written += tensor.elements
                total += tensor.elements * dtype_of(tensor.name).itemsize
                announce(written)
    if len(shards) > 1:
        write_index(folder / INDEX_FILE, dict(zip(names, shards, strict=True)), total)


def write_index(path: Path, shards: Mapping[str, Sequence[TensorSpec]], total_bytes: int) -> None:
    """Write the JSON index that maps each tensor to its shard's file."""
    weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    content = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    path.write_text(json.dumps(content, indent=2) + "\n")


def _header(shard: Sequence[TensorSpec], dtype_of: Callable[[str], torch.dtype]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        dtype = dtype_of(tensor.name)
        end = offset + tensor.elements * dtype.itemsize
        entries[tensor.name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # The format aligns the tensors' bytes to eight.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
