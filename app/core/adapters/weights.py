"""Checks the weights of a LoRA adapter in safetensors, by their header and as plain bytes.

The format is that of huggingface.co/docs/safetensors: the header's length in 8 bytes, a JSON object of
tensors, and their bytes, without gaps or overlaps. A stranger wrote the header: it is read in bounded time
and memory.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.core.errors.adapters import AdapterInvalid

_MAX_HEADER_BYTES = 25 << 20
# As many as an adapter on each expert of the largest models has. Each is an object with two lists.
_MAX_TENSORS = 120_000
_MAX_DIGITS = 19
_MAX_DIMENSIONS = 16
_MAX_SIZE = 2**62
_CHUNK_BYTES = 1 << 20
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_HINT = "Save it again with PEFT's save_pretrained."

_Size = Annotated[int, Field(ge=0, le=_MAX_SIZE)]


class _TensorEntry(BaseModel):
    """One entry of a safetensors header."""

    model_config = ConfigDict(strict=True)

    dtype: Annotated[str, Field(max_length=32)]
    shape: Annotated[list[_Size], Field(max_length=_MAX_DIMENSIONS)]
    data_offsets: Annotated[list[_Size], Field(min_length=2, max_length=2)]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Where a tensor's bytes are, behind the header."""

    name: str
    begin: int
    end: int


def check_weights(path: Path) -> None:
    """Raise AdapterInvalid where bytes of a tensor are missing, or every lora_B is zero."""
    tensors, start = _read_header(path)
    _check_layout(path, tensors, path.stat().st_size - start)
    updates = [tensor for tensor in tensors if ".lora_B." in tensor.name]
    if not updates:
        raise AdapterInvalid(f"{path.name} holds no weights of a LoRA adapter (lora_A, lora_B).", hint=_HINT)
    others = [tensor for tensor in tensors if ".lora_" not in tensor.name]
    if not others and not any(_has_content(path, start, tensor) for tensor in updates):
        raise AdapterInvalid(
            "Every lora_B of the adapter is zero: it changes nothing.",
            hint="Was it saved before it was trained?",
        )


def _check_layout(path: Path, tensors: Iterable[_Tensor], size: int) -> None:
    """Raise AdapterInvalid unless the tensors' bytes follow each other and end with the file."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.end > size:
            raise AdapterInvalid(
                f"{path.name}: the bytes of {_shown(tensor.name)} are not all there.", hint="Pack it again."
            )
        if tensor.begin != end:
            what = "overlap those of another tensor" if tensor.begin < end else "do not follow the others"
            raise AdapterInvalid(f"{path.name}: the bytes of {_shown(tensor.name)} {what}.", hint=_HINT)
        end = tensor.end
    if end != size:
        raise AdapterInvalid(f"{path.name} has bytes that belong to no tensor.", hint=_HINT)


def _read_header(path: Path) -> tuple[list[_Tensor], int]:
    """Returns the tensors, and where their bytes begin. Raises AdapterInvalid."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = _parse(file.read(length))
        header.pop("__metadata__", None)
        return [
            _to_tensor(path, name, _TensorEntry.model_validate(entry)) for name, entry in header.items()
        ], 8 + length
    except (ValueError, struct.error, RecursionError) as error:
        reason = f": {error}" if type(error) is ValueError else ""
        raise AdapterInvalid(f"{path.name} is no safetensors file{reason}.", hint=_HINT) from error


def _parse(text: bytes) -> dict[str, Any]:
    """The header as an object. Raises ValueError, before anything is allocated for too many tensors."""
    if text.count(b"{") + text.count(b"[") > 3 * _MAX_TENSORS or text.count(b",") > 10 * _MAX_TENSORS:
        raise ValueError(f"its header has more than {_MAX_TENSORS:,} tensors")
    header = json.loads(text, parse_int=_parse_int, object_pairs_hook=_to_object)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _parse_int(digits: str) -> int:
    # The time that Python takes for an integer grows with the square of its digits.
    if len(digits) > _MAX_DIGITS:
        raise ValueError("a number in its header is too large")
    return int(digits)


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _to_tensor(path: Path, name: str, entry: _TensorEntry) -> _Tensor:
    if entry.dtype not in _ITEM_BYTES:
        raise AdapterInvalid(
            f"{path.name}: {_shown(name)} is of type {entry.dtype}, not a float.", hint=_HINT
        )
    size = _ITEM_BYTES[entry.dtype]
    for length in entry.shape:
        size *= length
        if size > _MAX_SIZE and 0 not in entry.shape:
            break
    begin, end = entry.data_offsets
    if end - begin != size:
        raise AdapterInvalid(
            f"{path.name}: the bytes of {_shown(name)} are not as many as its shape says.", hint=_HINT
        )
    return _Tensor(name, begin, end)


def _shown(name: str) -> str:
    return repr(name[:200])


def _has_content(path: Path, start: int, tensor: _Tensor) -> bool:
    return any(piece.strip(b"\0") for piece in _read(path, start, tensor))


def _read(path: Path, start: int, tensor: _Tensor) -> Iterator[bytes]:
    begin, end = tensor.begin, tensor.end
    with path.open("rb") as file:
        file.seek(start + begin)
        while begin < end and (piece := file.read(min(end - begin, _CHUNK_BYTES))):
            begin += len(piece)
            yield piece
