"""Quantizes a weight to 4 bits and dequantizes it, some rows at a time: bit for bit as bitsandbytes does.

bitsandbytes' `Params4bit` takes fourteen bytes for each number of the weight on a CPU; this takes half a byte
and a few megabytes. O: outputs, I: inputs of a linear layer.
"""

from collections.abc import Iterable, Iterator

import torch
from bitsandbytes import functional
from bitsandbytes.functional import QuantState
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from worker.models import cpu_dequantize
from worker.models.cpu_dequantize import BlockLayout

# Numbers that share a scale, and scales that share one when quantized: bitsandbytes' own, as in QLoRA.
_BLOCK = 64
_STATISTICS_BLOCK = 256
_NUMBERS_AT_A_TIME = 1 << 19


def rows_at_a_time(columns: int) -> int:
    """How many rows of a matrix to process together, so that they fit the caches.

    It is a multiple of the block, so that each piece begins with a new block, whatever the columns.
    """
    return max(1, _NUMBERS_AT_A_TIME // (columns * _BLOCK)) * _BLOCK


def check_kernel(linears: Iterable[nn.Linear | Conv1D], options: BitsAndBytesConfig) -> None:
    """Check the CPU kernel that dequantizes, for the widths of all these layers at once.

    Call it before `round_weight` runs in several threads, and to get one log line for a model and not one for
    each width. `round_rows` checks the width of its own weight in any case.
    """
    widths = {one.nx if isinstance(one, Conv1D) else one.in_features for one in linears}
    cpu_dequantize.check(BlockLayout(width, options.bnb_4bit_quant_type, _BLOCK) for width in widths)


def round_rows(
    weight_OI: torch.Tensor, options: BitsAndBytesConfig, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Yield the dequantized weight in pieces of `rows_at_a_time` rows."""
    cpu_dequantize.check([BlockLayout(weight_OI.shape[1], options.bnb_4bit_quant_type, _BLOCK)])
    pieces = weight_OI.split(rows_at_a_time(weight_OI.shape[1]))
    # Allocated before the pieces' large temporaries, which it outlives: else it would fragment the heap.
    packed = torch.empty(_count(weight_OI.numel(), 2), 1, dtype=torch.uint8)
    scales = torch.empty(_count(weight_OI.numel(), _BLOCK))
    for first, rows in _enumerate(pieces):
        numbers, state = functional.quantize_4bit(
            rows.contiguous(), blocksize=_BLOCK, quant_type=options.bnb_4bit_quant_type
        )
        _part(packed, first, rows, 2).copy_(numbers)
        _part(scales, first, rows, _BLOCK).copy_(state.absmax)
    if options.bnb_4bit_use_double_quant:
        scales = _round_statistics(scales)
    for first, rows in _enumerate(pieces):
        state = QuantState(
            absmax=_part(scales, first, rows, _BLOCK),
            shape=rows.shape,
            dtype=dtype,
            blocksize=_BLOCK,
            quant_type=options.bnb_4bit_quant_type,
        )
        yield functional.dequantize_4bit(_part(packed, first, rows, 2), state)


def round_weight(weight_OI: torch.Tensor, options: BitsAndBytesConfig) -> None:
    """Quantize and dequantize a weight in place."""
    targets = weight_OI.split(rows_at_a_time(weight_OI.shape[1]))
    for target, rounded in zip(targets, round_rows(weight_OI, options, weight_OI.dtype), strict=True):
        target.copy_(rounded)


def _round_statistics(scales: torch.Tensor) -> torch.Tensor:
    """Scales, quantized to 8 bits and dequantized. All scales of the weight are needed for that."""
    offset = scales.mean()
    numbers, state = functional.quantize_blockwise(scales - offset, blocksize=_STATISTICS_BLOCK)
    return functional.dequantize_blockwise(numbers, state) + offset


def _enumerate(pieces: tuple[torch.Tensor, ...]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each piece with the count of the numbers before it."""
    first = 0
    for piece in pieces:
        yield first, piece
        first += piece.numel()


def _part(of: torch.Tensor, first: int, piece: torch.Tensor, numbers_each: int) -> torch.Tensor:
    """The entries of a piece in a buffer with one entry for every `numbers_each` numbers."""
    return of[first // numbers_each : _count(first + piece.numel(), numbers_each)]


def _count(numbers: int, each: int) -> int:
    return -(-numbers // each)
