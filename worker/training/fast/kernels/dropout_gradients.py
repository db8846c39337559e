"""The gradient of LoRA layers' input under dropout: masks are read where they are used, and no gradient that
a mask was not yet applied to is ever written.

Bound by memory: for three layers in bfloat16 5 bytes for each input, where products, masking and adding up
one after the other move 33.

T: tokens. I: inputs. S: the ranks of all layers together, one layer's after the other's.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_TOKENS, _INPUTS = 64, 128
_WARPS = 4
# The least that a product of tiles takes, and the most of a rank that is gone through at once.
_LEAST_RANKS, _MOST_RANKS = 16, 64


def through_adapters(
    grad_inner_TS: torch.Tensor,
    a_SI: torch.Tensor,
    masks: Sequence[torch.Tensor | None],
    scales: Sequence[float],
    ranks: Sequence[int],
) -> torch.Tensor:
    """The sum over layers of mask * (grad_inner @ A) * scale, [T, I], in float32 and rounded once.

    A mask is a bool [T, I]; None: all is kept.
    """
    tokens, inputs = len(grad_inner_TS), a_SI.shape[1]
    grad_x_TI = grad_inner_TS.new_empty(tokens, inputs)
    _through_adapters_kernel[(triton.cdiv(inputs, _INPUTS), triton.cdiv(tokens, _TOKENS))](
        grad_inner_TS,
        a_SI,
        tuple(None if mask_TI is None else mask_TI.contiguous() for mask_TI in masks),
        grad_x_TI,
        tokens,
        inputs,
        grad_inner_TS.stride(0),
        SCALES=tuple(scales),
        RANKS=tuple(ranks),
        RANKS_AT_ONCE=min(_MOST_RANKS, max(_LEAST_RANKS, triton.next_power_of_2(max(ranks)))),
        TOKENS=_TOKENS,
        INPUTS=_INPUTS,
        num_warps=_WARPS,
    )
    return grad_x_TI


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
        for first in tl.static_range(0, RANKS[layer], RANKS_AT_ONCE):
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
