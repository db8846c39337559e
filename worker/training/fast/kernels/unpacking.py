"""Weights in bitsandbytes' 4 bits to 16, as one Triton kernel, also where scales are quantized themselves.

bitsandbytes takes three kernels for these, and its main one writes at half the speed of the memory. Layout
and arithmetic are its own: two weights to a byte, the first in the high half, a scale for each block.
"""

import torch
import triton
import triton.language as tl
from bitsandbytes.functional import QuantState, dequantize_4bit

_BLOCKS = 64
_WARPS = 4


def unpack(packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    """The weight [O, I] in the type that the state names."""
    if state.shape.numel() % state.blocksize:
        return dequantize_4bit(packed, state)  # its last block is not whole
    weight_OI = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    blocks = weight_OI.numel() // state.blocksize
    second = state.state2 if state.nested else None
    _unpack_kernel[(triton.cdiv(blocks, _BLOCKS),)](
        packed,
        state.code,
        state.absmax,
        second.code if second else state.code,
        second.absmax if second else state.absmax,
        state.offset if second else state.absmax,
        weight_OI,
        blocks,
        BLOCKS=_BLOCKS,
        BLOCK_BYTES=state.blocksize // 2,
        SCALE_BLOCK=second.blocksize if second else 0,
        num_warps=_WARPS,
        enable_fp_fusion=False,  # bitsandbytes rounds between product and sum
    )
    return weight_OI


@triton.jit
def _unpack_kernel(
    packed,
    code,
    scales,
    scale_code,
    second_scales,
    offset,
    weights,
    block_count,
    BLOCKS: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
):
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
    weight_at = blocks.to(tl.int64)[:, None] * (2 * BLOCK_BYTES) + tl.arange(0, 2 * BLOCK_BYTES)
    tl.store(weights + weight_at, weight, mask=is_block[:, None])
