"""Dequantizes bitsandbytes' 4-bit weights in one Triton kernel, also where scales are quantized themselves.

bitsandbytes takes three kernels for that, and its main one writes at half the speed of the memory. Layout and
arithmetic are those of bitsandbytes: two weights to a byte, the first in the high half, a scale for each
block.

I: inputs. O: outputs. R: the rank of B. S: columns to the right of the weight, those of B among them.
"""

import torch
import triton
import triton.language as tl
from bitsandbytes.functional import QuantState, dequantize_4bit

from worker.models.frozen_weights import AdapterColumns

_BLOCKS = 64  # of weights, to a program
_ROWS = 64  # of B, to a program
_WARPS = 4


def dequantize(packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    """The weight [O, I] in the type that the state names."""
    if state.shape.numel() % state.blocksize:
        return dequantize_4bit(packed, state)  # the last block is incomplete
    weight_OI = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    _launch(packed, state, weight_OI, None)
    return weight_OI


def dequantize_with_b(packed: torch.Tensor, state: QuantState, columns: AdapterColumns) -> torch.Tensor:
    """The weight with B to its right, [O, I + S]. A row must be a whole number of blocks."""
    outputs, inputs = state.shape
    assert inputs % state.blocksize == 0
    weight = torch.empty(outputs, inputs + columns.count, dtype=state.dtype, device=packed.device)
    _launch(packed, state, weight, columns)
    return weight


def dequantize_with_a(packed: torch.Tensor, state: QuantState, a_SI: torch.Tensor) -> torch.Tensor:
    """The weight with A below it, [O + S, I]. A row must be a whole number of blocks."""
    outputs, inputs = state.shape
    assert inputs % state.blocksize == 0
    weight = torch.empty(outputs + len(a_SI), inputs, dtype=state.dtype, device=packed.device)
    _launch(packed, state, weight, None)
    weight[outputs:] = a_SI
    return weight


def _launch(
    packed: torch.Tensor, state: QuantState, weight: torch.Tensor, columns: AdapterColumns | None
) -> None:
    """Write a weight to the first O rows of `weight`; with `columns`, also the columns to its right."""
    outputs, inputs = state.shape
    count = columns.count if columns else 0
    blocks = outputs * inputs // state.blocksize
    programs = triton.cdiv(blocks, _BLOCKS)
    second = state.state2 if state.nested else None
    _dequantize_kernel[(programs + (triton.cdiv(outputs, _ROWS) if columns else 0),)](
        packed,
        state.code,
        state.absmax,
        second.code if second else state.code,
        second.absmax if second else state.absmax,
        state.offset if second else state.absmax,
        weight,
        columns.b_OR if columns else weight,
        blocks,
        programs,
        columns.first if columns else 0,
        BLOCKS=_BLOCKS,
        BLOCK_BYTES=state.blocksize // 2,
        SCALE_BLOCK=second.blocksize if second else 0,
        ROW_BLOCKS=inputs // state.blocksize if columns else 1,
        COUNT=count,
        COLUMNS=triton.next_power_of_2(count) if columns else 0,
        RANK=columns.b_OR.shape[1] if columns else 0,
        ROWS=_ROWS,
        num_warps=_WARPS,
        enable_fp_fusion=False,  # bitsandbytes rounds between product and sum
    )


@triton.jit(do_not_specialize=["programs", "first_column"])
def _dequantize_kernel(
    packed,
    code,
    scales,
    scale_code,
    second_scales,
    offset,
    weights,
    matrix_b,
    block_count,
    programs,
    first_column,
    BLOCKS: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    COUNT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The first `programs` programs dequantize; the others write the columns right of the weight."""
    if COUNT > 0 and tl.program_id(0) >= programs:
        _write_columns(
            matrix_b,
            weights,
            (tl.program_id(0) - programs) * ROWS,
            block_count // ROW_BLOCKS,
            first_column,
            ROW_BLOCKS * BLOCK_BYTES * 2,
            COUNT,
            COLUMNS,
            RANK,
            ROWS,
        )
        return
    blocks = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    is_block = blocks < block_count
    scale = tl.load(scales + blocks, mask=is_block, other=0)
    if SCALE_BLOCK > 0:
        second = tl.load(second_scales + blocks // SCALE_BLOCK, mask=is_block, other=0.0)
        scale = tl.load(scale_code + scale.to(tl.int32)) * second + tl.load(offset)
    at = blocks.to(tl.int64)[:, None] * BLOCK_BYTES + tl.arange(0, BLOCK_BYTES)
    pair = tl.load(packed + at, mask=is_block[:, None], other=0).to(tl.int32)
    first = tl.load(code + (pair >> 4)) * scale[:, None]
    second_of_pair = tl.load(code + (pair & 15)) * scale[:, None]
    weight = tl.interleave(first, second_of_pair).to(weights.dtype.element_ty)
    begins = blocks.to(tl.int64) * (2 * BLOCK_BYTES) + blocks // ROW_BLOCKS * COUNT
    tl.store(weights + begins[:, None] + tl.arange(0, 2 * BLOCK_BYTES), weight, mask=is_block[:, None])


@triton.jit
def _write_columns(
    matrix_b,
    weights,
    first_row,
    row_count,
    first_column,
    INPUTS: tl.constexpr,
    COUNT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = first_row + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    rank = column - first_column
    is_row = row[:, None] < row_count
    is_b = is_row & (rank >= 0) & (rank < RANK)
    b = tl.load(matrix_b + row[:, None] * RANK + rank, mask=is_b, other=0.0)
    at = row.to(tl.int64)[:, None] * (INPUTS + COUNT) + INPUTS + column
    tl.store(weights + at, b.to(weights.dtype.element_ty), mask=is_row & (column < COUNT))
