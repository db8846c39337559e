"""A weight's trip through 4 bits and back, some rows at a time: bit for bit what bitsandbytes' own way gives.

That way (`Params4bit`) takes some twenty bytes for each number of the weight on a CPU; this one half a byte
and a few megabytes. O: outputs, I: inputs of a linear layer.
"""

from collections.abc import Iterator

import torch
from bitsandbytes import functional
from bitsandbytes.functional import QuantState
from transformers import BitsAndBytesConfig

# Of QLoRA's double quantization (bitsandbytes' quantize_4bit).
_STATISTICS_BLOCK = 256
# A multiple of every block of numbers that shares a scale: rows so many at a time begin with a new block.
_ROW_STEP = 64
_NUMBERS_AT_A_TIME = 1 << 19


def rows_at_a_time(columns: int) -> int:
    """How many rows of a matrix to work on together, so that memory stays small and quick."""
    return max(1, _NUMBERS_AT_A_TIME // (columns * _ROW_STEP)) * _ROW_STEP


def round_rows(
    weight_OI: torch.Tensor, options: BitsAndBytesConfig, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """The weight as it is after its trip, in blocks of `rows_at_a_time` rows."""
    packed, scales = [], []
    for rows in weight_OI.split(rows_at_a_time(weight_OI.shape[1])):
        numbers, state = functional.quantize_4bit(
            rows.contiguous(),
            quant_type=options.bnb_4bit_quant_type,
            quant_storage=options.bnb_4bit_quant_storage,
        )
        packed.append((numbers, state))
        scales.append(state.absmax)
    all_scales = torch.cat(scales)
    if options.bnb_4bit_use_double_quant:
        all_scales = _round_statistics(all_scales)
    for (numbers, state), own in zip(packed, all_scales.split([len(one) for one in scales]), strict=True):
        yield functional.dequantize_4bit(numbers, _with_scales(state, own, dtype))


def round_weight(weight_OI: torch.Tensor, options: BitsAndBytesConfig) -> None:
    """Round a weight where it stands."""
    targets = weight_OI.split(rows_at_a_time(weight_OI.shape[1]))
    for target, rounded in zip(targets, round_rows(weight_OI, options, weight_OI.dtype), strict=True):
        target.copy_(rounded)


def _round_statistics(scales: torch.Tensor) -> torch.Tensor:
    """Scales after their own trip through 8 bits, for which the whole weight's are needed."""
    offset = scales.mean()
    numbers, state = functional.quantize_blockwise(scales - offset, blocksize=_STATISTICS_BLOCK)
    return functional.dequantize_blockwise(numbers, state) + offset


def _with_scales(state: QuantState, scales: torch.Tensor, dtype: torch.dtype) -> QuantState:
    return QuantState(
        absmax=scales,
        shape=state.shape,
        dtype=dtype,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
    )
