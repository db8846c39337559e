"""Gradients of LoRA layers under dropout, with the masks applied inside the kernels.

Memory bandwidth limits them. For three layers in bfloat16 the gradient of the input moves 5 bytes for each
input, where a product, masking and an addition for each layer move 33; the gradients of A move 5 and their
partial sums, where masking and a product for each layer move 21.

T: tokens. I: inputs. R: the rank of a layer. S: the ranks of all layers together, one layer after the other.
P: parts of the tokens.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# Tokens and inputs of a tile.
_TOKENS, _INPUTS = 64, 64
_WARPS = 4
_STAGES = 3
# Enough programs to fill a large GPU; a fixed number, so that results do not depend on the GPU's size.
_PROGRAMS = 512
# Ranks of a tile: the smallest that `tl.dot` accepts, and the largest.
_MIN_RANKS, _MAX_RANKS = 16, 64


def grad_of_x_under_dropout(
    grad_inner_TS: torch.Tensor,
    a_SI: torch.Tensor,
    masks: Sequence[torch.Tensor | None],
    scales: Sequence[float],
    ranks: Sequence[int],
) -> torch.Tensor:
    """The sum over layers of mask * (grad_inner @ A) * scale, [T, I], summed in float32 and rounded once.

    A mask is a bool [T, I]; None is a mask of ones.
    """
    tokens, inputs = len(grad_inner_TS), a_SI.shape[1]
    grad_x_TI = grad_inner_TS.new_empty(tokens, inputs)
    _through_adapters_kernel[(triton.cdiv(inputs, _INPUTS), triton.cdiv(tokens, _TOKENS))](
        grad_inner_TS,
        a_SI,
        _contiguous(masks),
        grad_x_TI,
        tokens,
        inputs,
        grad_inner_TS.stride(0),
        SCALES=tuple(scales),
        RANKS=tuple(ranks),
        RANKS_AT_ONCE=_ranks_at_once(ranks),
        TOKENS=_TOKENS,
        INPUTS=_INPUTS,
        num_warps=_WARPS,
    )
    return grad_x_TI


def grads_of_a_under_dropout(
    x_TI: torch.Tensor,
    grad_inner_TS: torch.Tensor,
    masks: Sequence[torch.Tensor | None],
    scales: Sequence[float],
    ranks: Sequence[int],
) -> list[torch.Tensor]:
    """grad_inner^T @ (mask * x) * scale, [R, I] in float32, for each of up to three layers.

    Each part of the tokens has its own partial sums, added up in a fixed order: results are reproducible.
    """
    tokens, inputs = x_TI.shape
    columns, steps = triton.cdiv(inputs, _INPUTS), triton.cdiv(tokens, _TOKENS)
    steps_per_part = triton.cdiv(steps, triton.cdiv(_PROGRAMS, columns))
    parts, at_once = triton.cdiv(steps, steps_per_part), _ranks_at_once(ranks)
    sums_PSI = torch.empty(parts, sum(ranks), inputs, dtype=torch.float32, device=x_TI.device)
    _of_a_kernel[(triton.cdiv(max(ranks), at_once), columns, parts)](
        x_TI,
        grad_inner_TS,
        _contiguous(masks),
        sums_PSI,
        tokens,
        inputs,
        x_TI.stride(0),
        grad_inner_TS.stride(0),
        steps_per_part * _TOKENS,
        SCALES=tuple(scales),
        RANKS=tuple(ranks),
        ALL_RANKS=sum(ranks),
        RANKS_AT_ONCE=at_once,
        TOKENS=_TOKENS,
        INPUTS=_INPUTS,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return list(sums_PSI.sum(0).split(list(ranks)))


def _contiguous(masks: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if mask_TI is None else mask_TI.contiguous() for mask_TI in masks)


def _ranks_at_once(ranks: Sequence[int]) -> int:
    return min(_MAX_RANKS, max(_MIN_RANKS, triton.next_power_of_2(max(ranks))))


@triton.jit(do_not_specialize=["token_count"])
def _through_adapters_kernel(
    grad_inner,
    matrix_a,
    masks,
    grad_x,
    token_count,
    input_count,
    grad_inner_stride,
    SCALES: tl.constexpr,
    RANKS: tl.constexpr,
    RANKS_AT_ONCE: tl.constexpr,
    TOKENS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    inputs = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)[None, :]
    tokens = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
    has_input, has_token = inputs < input_count, tokens < token_count
    places = tokens * input_count + inputs
    total = tl.zeros([TOKENS, INPUTS], tl.float32)
    before = 0
    for layer in tl.static_range(len(RANKS)):
        product = tl.zeros([TOKENS, INPUTS], tl.float32)
        for first in range(0, RANKS[layer], RANKS_AT_ONCE):
            rank = first + tl.arange(0, RANKS_AT_ONCE)
            is_rank = rank < RANKS[layer]
            grad_at = tokens * grad_inner_stride + before + rank[None, :]
            grad = tl.load(grad_inner + grad_at, mask=has_token & is_rank[None, :], other=0.0)
            a_at = (before + rank).to(tl.int64)[:, None] * input_count + inputs
            a = tl.load(matrix_a + a_at, mask=is_rank[:, None] & has_input, other=0.0)
            product = tl.dot(grad, a, product, input_precision="ieee")
        if masks[layer] is not None:
            is_kept = tl.load(masks[layer] + places, mask=has_token & has_input, other=0)
            product = tl.where(is_kept, product, 0.0)
        total += product * SCALES[layer]
        before += RANKS[layer]
    tl.store(grad_x + places, total.to(grad_x.dtype.element_ty), mask=has_token & has_input)


@triton.jit(do_not_specialize=["token_count", "part_tokens"])
def _of_a_kernel(
    x,
    grad_inner,
    masks,
    sums,
    token_count,
    input_count,
    x_stride,
    grad_inner_stride,
    part_tokens,
    SCALES: tl.constexpr,
    RANKS: tl.constexpr,
    ALL_RANKS: tl.constexpr,
    RANKS_AT_ONCE: tl.constexpr,
    TOKENS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    ranks = tl.program_id(0) * RANKS_AT_ONCE + tl.arange(0, RANKS_AT_ONCE)
    inputs = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)[None, :]
    part = tl.program_id(2)
    has_input = inputs < input_count
    first_sum = tl.zeros([RANKS_AT_ONCE, INPUTS], tl.float32)
    second_sum = tl.zeros([RANKS_AT_ONCE, INPUTS], tl.float32)
    third_sum = tl.zeros([RANKS_AT_ONCE, INPUTS], tl.float32)
    for step in range(0, part_tokens, TOKENS):
        tokens = (part * part_tokens + step + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
        has_token = tokens < token_count
        is_there = has_token & has_input
        x_tile = tl.load(x + tokens * x_stride + inputs, mask=is_there, other=0.0)
        before = 0
        for layer in tl.static_range(len(RANKS)):
            is_rank = (ranks < RANKS[layer])[None, :]
            grad_at = tokens * grad_inner_stride + before + ranks[None, :]
            grad = tl.load(grad_inner + grad_at, mask=has_token & is_rank, other=0.0)
            kept = x_tile
            if masks[layer] is not None:
                is_kept = tl.load(masks[layer] + tokens * input_count + inputs, mask=is_there, other=0)
                kept = tl.where(is_kept, x_tile, 0.0)
            kept = kept.to(grad.dtype)
            if layer == 0:
                first_sum = tl.dot(grad.trans(), kept, first_sum, input_precision="ieee")
            elif layer == 1:
                second_sum = tl.dot(grad.trans(), kept, second_sum, input_precision="ieee")
            else:
                third_sum = tl.dot(grad.trans(), kept, third_sum, input_precision="ieee")
            before += RANKS[layer]
    before = 0
    for layer in tl.static_range(len(RANKS)):
        total = first_sum if layer == 0 else second_sum if layer == 1 else third_sum
        at = (part * ALL_RANKS + before + ranks).to(tl.int64)[:, None] * input_count + inputs
        tl.store(sums + at, total * SCALES[layer], mask=(ranks < RANKS[layer])[:, None] & has_input)
        before += RANKS[layer]
