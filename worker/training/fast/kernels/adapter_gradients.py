"""Both gradients of a product with B from one look at the gradient of its output.

The gradients of B and of the product with A are narrow, and each is a product with a gradient as wide as a
layer's output: two kernels of a library read it twice, and that is all the time they take. Here every tile of
it is read once and multiplied with both. Parts are added in a fixed order, so the same comes out each time.

T: tokens. O: outputs of a layer. R: the rank. P: parts.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from worker.training.fast.lora_linear import gradients_through_b

# Below it there are too few tiles for a large GPU; above the rank the parts are more than what is saved.
_FEWEST_TOKENS = 2048
_HIGHEST_RANK = 32
_SUM_BLOCK = 1024


@dataclass(frozen=True)
class _Tiles:
    tokens: int
    outputs: int
    splits: int  # of the outputs
    warps: int
    stages: int


# Measured on an H100.
_TILES = _Tiles(256, 64, 8, 8, 3)


def in_one_look(
    grad_TO: torch.Tensor,
    inner_TR: torch.Tensor,
    b_OR: torch.Tensor,
    scaling: float,
    *,
    out_TR: torch.Tensor,
) -> torch.Tensor:
    """What `gradients_through_b` answers and leaves in `out_TR`; the gradient of B is in float32."""
    (tokens, outputs), rank = grad_TO.shape, inner_TR.shape[1]
    if tokens < _FEWEST_TOKENS or rank > _HIGHEST_RANK or grad_TO.stride(1) != 1:
        return gradients_through_b(grad_TO, inner_TR, b_OR, scaling, out_TR=out_TR)
    token_parts = triton.cdiv(tokens, _TILES.tokens)
    parts_PTR = grad_TO.new_empty(_TILES.splits, tokens, rank, dtype=torch.float32)
    parts_POR = grad_TO.new_empty(token_parts, outputs, rank, dtype=torch.float32)
    grad_b_OR = grad_TO.new_empty(outputs, rank, dtype=torch.float32)
    _parts_kernel[(token_parts, _TILES.splits)](
        grad_TO,
        inner_TR,
        b_OR,
        parts_PTR,
        parts_POR,
        tokens,
        outputs,
        grad_TO.stride(0),
        inner_TR.stride(0),
        triton.cdiv(outputs, _TILES.outputs * _TILES.splits) * _TILES.outputs,
        RANK=rank,
        RANK_BLOCK=max(16, triton.next_power_of_2(rank)),
        TOKENS_BLOCK=_TILES.tokens,
        OUTPUTS_BLOCK=_TILES.outputs,
        num_warps=_TILES.warps,
        num_stages=_TILES.stages,
    )
    for parts, answer in ((parts_PTR, out_TR), (parts_POR, grad_b_OR)):
        numbers = answer.numel()
        _sum_kernel[(triton.cdiv(numbers, _SUM_BLOCK),)](
            parts, answer, numbers, len(parts), answer.stride(0), scaling, RANK=rank, BLOCK=_SUM_BLOCK
        )
    return grad_b_OR


@triton.jit(do_not_specialize=["tokens"])
def _parts_kernel(
    grads,
    inner,
    b,
    parts_of_inner,
    parts_of_b,
    tokens,
    outputs,
    grad_stride,
    inner_stride,
    split_outputs,
    RANK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    TOKENS_BLOCK: tl.constexpr,
    OUTPUTS_BLOCK: tl.constexpr,
):
    """Some tokens and a share of the outputs: (tiles of tokens, splits)."""
    token = tl.program_id(0) * TOKENS_BLOCK + tl.arange(0, TOKENS_BLOCK)
    is_token = (token < tokens)[:, None]
    ranks = tl.arange(0, RANK_BLOCK)
    is_rank = ranks < RANK
    narrow = tl.load(
        inner + token.to(tl.int64)[:, None] * inner_stride + ranks, mask=is_token & is_rank, other=0.0
    )
    grad_at = grads + token.to(tl.int64)[:, None] * grad_stride
    summed = tl.zeros((TOKENS_BLOCK, RANK_BLOCK), tl.float32)
    first = tl.program_id(1) * split_outputs
    for begin in range(first, tl.minimum(first + split_outputs, outputs), OUTPUTS_BLOCK):
        output = begin + tl.arange(0, OUTPUTS_BLOCK)
        is_output = output < outputs
        is_line = is_output[:, None] & is_rank
        grad = tl.load(grad_at + output, mask=is_token & is_output, other=0.0)
        lines = tl.load(b + output[:, None] * RANK + ranks, mask=is_line, other=0.0)
        summed = tl.dot(grad, lines, summed)
        part_at = (tl.program_id(0).to(tl.int64) * outputs + output)[:, None] * RANK + ranks
        tl.store(parts_of_b + part_at, tl.dot(grad.trans(), narrow), mask=is_line)
    part_at = (tl.program_id(1).to(tl.int64) * tokens + token)[:, None] * RANK + ranks
    tl.store(parts_of_inner + part_at, summed, mask=is_token & is_rank)


@triton.jit(do_not_specialize=["numbers", "part_count"])
def _sum_kernel(
    parts, answer, numbers, part_count, answer_stride, scaling, RANK: tl.constexpr, BLOCK: tl.constexpr
):
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_number = number < numbers
    summed = tl.zeros((BLOCK,), tl.float32)
    for _ in range(part_count):
        summed += tl.load(parts + number, mask=is_number, other=0.0)
        parts += numbers
    at = (number // RANK).to(tl.int64) * answer_stride + number % RANK
    tl.store(answer + at, (summed * scaling).to(answer.dtype.element_ty), mask=is_number)
