"""Matrix products with B of a LoRA layer in the backward pass, which memory bandwidth limits at low rank.

T: tokens. O: outputs of the layer. R: the rank.
"""

import torch
import triton
import triton.language as tl

from worker.kernels import dropout_gradients

# With `gradients`, these are the products that the LoRA function needs.
grad_of_x_under_dropout = dropout_gradients.grad_of_x_under_dropout
grads_of_a_under_dropout = dropout_gradients.grads_of_a_under_dropout

# Rank up to which `gradients` is faster than cuBLAS.
MAX_RANK_GRADIENTS = 32
# Tokens and outputs of a tile.
_GRADIENTS_TILE = (256, 64)
_SUM_ELEMENTS = 1024  # of a program
_STAGES = 3
# Enough programs to keep the largest GPUs busy, with few partial sums to add up.
_PROGRAMS = 128
_MIN_RANKS = 16  # of a tile's product


def gradients(
    grad_TO: torch.Tensor, inner_TR: torch.Tensor, b_OR: torch.Tensor, scaling: float, out_TR: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of B, [O, R] in float32; write the gradient of `inner` times `scaling` to `out_TR`.

    `grad_TO` is the gradient of inner @ B^T. Both results need all of it, so it is read once for both: each
    program sums over its own tokens and outputs, and a second kernel adds up those sums in a fixed order.
    """
    tokens, width = grad_TO.shape
    rank = b_OR.shape[1]
    own_tokens, own_outputs = _GRADIENTS_TILE
    token_blocks = triton.cdiv(tokens, own_tokens)
    tiles = triton.cdiv(width, own_outputs)
    chunk = triton.cdiv(tiles, triton.cdiv(_PROGRAMS, token_blocks))
    chunks = triton.cdiv(tiles, chunk)
    inner_sums = torch.empty(chunks, tokens, rank, dtype=torch.float32, device=grad_TO.device)
    b_sums = torch.empty(token_blocks, width, rank, dtype=torch.float32, device=grad_TO.device)
    _gradients_kernel[(token_blocks, chunks)](
        grad_TO,
        inner_TR,
        b_OR,
        inner_sums,
        b_sums,
        tokens,
        width,
        grad_TO.stride(0),
        inner_TR.stride(0),
        chunk * own_outputs,
        RANK=rank,
        RANKS=_padded(rank),
        TOKENS=own_tokens,
        OUTPUTS=own_outputs,
        STAGES=_STAGES,
        num_warps=8,
    )
    grad_b_OR = torch.empty(width, rank, dtype=torch.float32, device=grad_TO.device)
    b_programs = triton.cdiv(width * rank, _SUM_ELEMENTS)
    _sum_kernel[(b_programs + triton.cdiv(tokens * rank, _SUM_ELEMENTS),)](
        inner_sums,
        b_sums,
        out_TR,
        grad_b_OR,
        scaling,
        chunks,
        token_blocks,
        tokens * rank,
        width * rank,
        out_TR.stride(0),
        b_programs,
        RANK=rank,
        ELEMENTS=_SUM_ELEMENTS,
        num_warps=4,
    )
    return grad_b_OR


def _padded(rank: int) -> int:
    padded: int = max(_MIN_RANKS, triton.next_power_of_2(rank))
    return padded


@triton.jit(do_not_specialize=["tokens"])
def _gradients_kernel(
    grads,
    inners,
    matrix_b,
    inner_sums,
    b_sums,
    tokens,
    width,
    grad_stride,
    inner_stride,
    chunk,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Partial sums for one block of tokens and one chunk of outputs. Grid: (blocks, chunks)."""
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    token = block * TOKENS + tl.arange(0, TOKENS)[:, None]
    rank = tl.arange(0, RANKS)
    is_token, is_rank = token < tokens, rank < RANK
    inner = tl.load(inners + token * inner_stride + rank, mask=is_token & is_rank, other=0.0)
    inner_sum = tl.zeros((TOKENS, RANKS), tl.float32)
    first = tl.program_id(1) * chunk
    for begin in tl.range(first, tl.minimum(first + chunk, width), OUTPUTS, num_stages=STAGES):
        output = begin + tl.arange(0, OUTPUTS)
        is_output = output < width
        grad = tl.load(grads + token * grad_stride + output, mask=is_token & is_output, other=0.0)
        is_b = is_output[:, None] & is_rank
        b = tl.load(matrix_b + output[:, None] * RANK + rank, mask=is_b, other=0.0)
        inner_sum = tl.dot(grad, b, inner_sum, input_precision="ieee")
        b_sum = tl.dot(grad.trans(), inner, input_precision="ieee")
        tl.store(b_sums + (block * width + output[:, None]) * RANK + rank, b_sum, mask=is_b)
    tl.store(inner_sums + (part * tokens + token) * RANK + rank, inner_sum, mask=is_token & is_rank)


@triton.jit(do_not_specialize=["inner_parts", "b_parts", "inner_count", "b_programs"])
def _sum_kernel(
    inner_sums,
    b_sums,
    grad_inners,
    grad_b,
    scaling,
    inner_parts,
    b_parts,
    inner_count,
    b_count,
    inner_stride,
    b_programs,
    RANK: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """The first `b_programs` programs add up the gradient of B, the others that of `inner`."""
    if tl.program_id(0) < b_programs:
        element = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
        tl.store(
            grad_b + element, _total(b_sums, element, b_parts, b_count, ELEMENTS), mask=element < b_count
        )
    else:
        element = (tl.program_id(0) - b_programs) * ELEMENTS + tl.arange(0, ELEMENTS)
        total = _total(inner_sums, element, inner_parts, inner_count, ELEMENTS) * scaling
        at = (element // RANK).to(tl.int64) * inner_stride + element % RANK
        tl.store(grad_inners + at, total.to(grad_inners.dtype.element_ty), mask=element < inner_count)


@triton.jit
def _total(sums, element, parts, count, ELEMENTS: tl.constexpr):
    total = tl.zeros((ELEMENTS,), tl.float32)
    for part in range(parts):
        total += tl.load(sums + tl.cast(part, tl.int64) * count + element, mask=element < count, other=0.0)
    return total
