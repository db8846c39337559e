"""The groups of inputs that have a scale together, in weights of 4 bits, and what the weights take."""

import torch

from app.core.errors.exports import ExportUnsupported
from worker.exports.merged.checkpoint import TensorSpec
from worker.exports.merged.linear_layers import check_linears, find_linears
from worker.exports.merged.merge import BaseShape

# Those that the kernels of vLLM and SGLang have; a larger group takes less memory.
_SIZES = (128, 64, 32)


def check_groups(shape: BaseShape, tensors: list[TensorSpec], format: str) -> None:
    """Raise ExportUnsupported for a model that the format can't hold.

    Raises QuantizerMissing where the files can't be read back.
    """
    check_linears(shape, tensors, format)
    find_group_size(tensors, find_linears(shape), format)


def find_group_size(tensors: list[TensorSpec], linears: set[str], format: str) -> int:
    """The largest group that divides the inputs of every linear layer. Raises ExportUnsupported."""
    widths = {tensor.name: tensor.shape[1] for tensor in tensors if tensor.name in linears}
    for size in _SIZES:
        if all(width % size == 0 for width in widths.values()):
            return size
    name, width = next((name, width) for name, width in widths.items() if width % _SIZES[-1])
    raise ExportUnsupported(
        f"{format} has a scale for each {_SIZES[-1]} inputs or more, and {name} has {width} inputs.",
        hint='The format "fp8", or "gguf" with the type "q4_k_m", has no such limit.',
    )


def count_bytes(tensors: list[TensorSpec], linears: set[str], group_size: int, dtype: torch.dtype) -> int:
    """The bytes of the tensors in the folder: half a byte a weight, and a scale for each group."""
    return sum(
        tensor.elements // 2 + tensor.elements // group_size * dtype.itemsize
        if tensor.name in linears
        else tensor.elements * dtype.itemsize
        for tensor in tensors
    )


def count_memory(tensors: list[TensorSpec], linears: set[str], dtype: torch.dtype) -> int:
    """About the main memory that rounding takes, in bytes: the model, and what is measured of one layer.

    GPTQ adds up a square matrix of float32 over the inputs of each linear layer of a decoder layer, and
    factors it. The widest is a multiple of the others, of which there are about seven.
    """
    widest = max((tensor.shape[1] for tensor in tensors if tensor.name in linears), default=0)
    return sum(tensor.elements for tensor in tensors) * dtype.itemsize + 4 * widest * widest * 4
