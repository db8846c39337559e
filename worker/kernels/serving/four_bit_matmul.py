"""Linear layers of bitsandbytes' 4-bit weights for up to 64 tokens, which read the packed weights once.

Each weight is rounded to the type of x before it is multiplied: results differ from a product with the
dequantized weights by the order of the sums alone, which are in float32. Layout and arithmetic of the weights
are those of `dequantize`; the scales of blocks are not quantized themselves. A single token is left to
`four_bit_vector`, which does not round the weights.

Shape letters: N tokens, I inputs, O outputs, C further rows, which are not quantized.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn import functional

from worker.kernels.serving import four_bit_vector
from worker.kernels.serving.four_bit_vector import BLOCK, look_up
from worker.kernels.serving.skinny_matmul import store_product

MAX_TOKENS = 64
_FEWEST_TOKENS = 8  # of a tile
_DENSE_ROWS = 16  # to a program
MAX_TOKENS_WITH_ROWS = 16  # above, cuBLAS computes the products with further rows sooner
_FEW_OUTPUTS, _MANY_OUTPUTS = 8192, 16384


class Tiles(NamedTuple):
    """A program computes `rows` outputs. Each of its warps takes every `warps`-th block of the inputs."""

    rows: int
    warps: int
    unroll: int
    stages: int


# By the tokens of a tile: for few, usual and many outputs.
_CUTS = {
    8: (Tiles(16, 4, 2, 3), Tiles(16, 4, 2, 3), Tiles(32, 2, 2, 4)),
    16: (Tiles(16, 4, 2, 3), Tiles(32, 4, 1, 3), Tiles(64, 4, 1, 3)),
    32: (Tiles(32, 4, 1, 3), Tiles(32, 4, 1, 3), Tiles(64, 2, 1, 3)),
    64: (Tiles(32, 4, 1, 2), Tiles(32, 4, 1, 2), Tiles(32, 4, 1, 2)),
}


def products(
    x_NI: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    plus_NO: torch.Tensor | None = None,
    rows_CI: torch.Tensor | None = None,
    *,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x · Wᵀ + bias + plus, [N, O], and x times `rows_CI` [N, C], for at most 64 tokens.

    `packed`: the bytes of W [O, I]. `absmax`: a float32 for each block; a row of W is whole blocks.
    `code`: the 16 values. `tiles`: how the outputs are divided, also of a single token.
    """
    count, inputs = x_NI.shape
    outputs = absmax.numel() * BLOCK // inputs
    if count == 1 and tiles is None and four_bit_vector.can_multiply(x_NI, packed, outputs):
        return four_bit_vector.product(x_NI, packed, absmax, code, bias_O, plus_NO, rows_CI)
    if rows_CI is not None and count > MAX_TOKENS_WITH_ROWS:
        y_NO, _none = products(x_NI, packed, absmax, code, bias_O, plus_NO, tiles=tiles)
        return y_NO, functional.linear(x_NI, rows_CI)
    row_count = len(rows_CI) if rows_CI is not None else 0
    y_NO, inner_NC = x_NI.new_empty(count, outputs), x_NI.new_empty(count, row_count)
    tiles = tiles or _tiles(count, outputs)
    row_programs = triton.cdiv(row_count, _DENSE_ROWS)
    _product_kernel[(row_programs + triton.cdiv(outputs, tiles.rows),)](
        _fours(x_NI),
        packed.view(-1).view(torch.int16),
        absmax,
        code,
        bias_O if bias_O is not None else y_NO,
        plus_NO.contiguous() if plus_NO is not None else y_NO,
        _fours(rows_CI) if rows_CI is not None else y_NO,
        y_NO,
        inner_NC,
        count,
        outputs,
        row_count,
        row_programs,
        INPUTS=inputs,
        HAS_BIAS=bias_O is not None,
        HAS_PLUS=plus_NO is not None,
        HAS_ROWS=rows_CI is not None,
        USES_LANES=isinstance(_product_kernel, triton.JITFunction),  # not by Triton's interpreter
        TOKENS=_padded(count),
        ROWS=tiles.rows,
        DENSE_ROWS=_DENSE_ROWS,
        PARTS=tiles.warps,
        UNROLL=tiles.unroll,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
    )
    return y_NO, inner_NC


def _tiles(count: int, outputs: int) -> Tiles:
    """The fastest on an H200 for products of 4096 and 11008 inputs with 4096, 12288 and 22016 outputs."""
    few, usual, many = _CUTS[_padded(count)]
    return few if outputs <= _FEW_OUTPUTS else many if outputs > _MANY_OUTPUTS else usual


def _padded(count: int) -> int:
    return max(_FEWEST_TOKENS, triton.next_power_of_2(count))


def _fours(values: torch.Tensor) -> torch.Tensor:
    """Four values of 16 bits as one integer; values of 32 bits as they are."""
    values = values.contiguous()
    return values.view(torch.int64) if values.element_size() == 2 else values


# A word of 16 bits holds four weights, 16 words are a block. A block takes four products of [rows, 16] with
# [16, tokens]: of the first weights of all words, of the second and so on. So both sides are loaded as the
# tensor cores take them, and no weight moves to another lane once it is dequantized.
@triton.jit(do_not_specialize=["count", "row_count", "row_programs"])
def _product_kernel(
    x,
    packed,
    absmax,
    code,
    bias,
    plus,
    dense_rows,
    y,
    inner,
    count,
    output_count,
    row_count,
    row_programs,
    INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    USES_LANES: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    DENSE_ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The first `row_programs` programs compute the products with the rows that are not quantized."""
    tokens = tl.arange(0, TOKENS)
    has_token = tokens < count
    dtype: tl.constexpr = y.dtype.element_ty
    if HAS_ROWS and tl.program_id(0) < row_programs:
        rows = tl.program_id(0) * DENSE_ROWS + tl.arange(0, DENSE_ROWS)
        own = tl.minimum(rows, row_count - 1)
        total = _multiply_dense(
            x, dense_rows, own, has_token, dtype, INPUTS, TOKENS, DENSE_ROWS, PARTS, STAGES
        )
        has_both = (rows[:, None] < row_count) & has_token[None, :]
        tl.store(inner + tokens[None, :] * row_count + rows[:, None], total.to(dtype), mask=has_both)
        return
    rows = (tl.program_id(0) - row_programs) * ROWS + tl.arange(0, ROWS)
    total = _multiply(
        x,
        packed,
        absmax,
        code,
        tl.minimum(rows, output_count - 1),
        has_token,
        dtype,
        INPUTS,
        USES_LANES,
        TOKENS,
        ROWS,
        PARTS,
        UNROLL,
        STAGES,
    )
    store_product(total, y, bias, plus, rows, tokens, count, output_count, HAS_BIAS, HAS_PLUS)


@triton.jit
def _multiply(
    x,
    packed,
    absmax,
    code,
    rows,
    has_token,
    dtype: tl.constexpr,
    INPUTS: tl.constexpr,
    USES_LANES: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows of W times x, [ROWS, TOKENS]. A step of the loop takes `UNROLL` times `PARTS` blocks."""
    BLOCKS: tl.constexpr = INPUTS // 64
    IS_WHOLE: tl.constexpr = BLOCKS % (PARTS * UNROLL) == 0
    parts = tl.arange(0, PARTS)
    words = tl.arange(0, 16)
    packed += (
        rows[None, :, None].to(tl.int64) * (INPUTS // 4) + parts[:, None, None] * 16 + words[None, None, :]
    )
    absmax += rows[None, :].to(tl.int64) * BLOCKS + parts[:, None]
    lane_code = 0.0
    if USES_LANES:
        # A tensor: the compiler would not load words as the tensor cores take them with a scalar in between.
        lane = tl.inline_asm_elementwise(
            "mov.u32 $0, %laneid;", "=r,r", [tl.zeros([1, 1, 1], tl.int32)], tl.int32, is_pure=True, pack=1
        )
        lane_code = tl.load(code + (lane & 15))
    x = _inputs(x, INPUTS, TOKENS, PARTS)
    summed = tl.zeros([PARTS, ROWS, TOKENS], tl.float32)
    for begin in tl.range(0, BLOCKS, PARTS * UNROLL, num_stages=STAGES):
        for step in tl.static_range(UNROLL):
            block = begin + step * PARTS
            has_x = has_token[None, None, :]
            if IS_WHOLE:
                word = tl.load(packed + block * 16).to(tl.int32)
                scale = tl.load(absmax + block)
            else:
                is_block = block + parts < BLOCKS
                has_x &= is_block[:, None, None]
                word = tl.load(packed + block * 16, mask=is_block[:, None, None], other=0).to(tl.int32)
                scale = tl.load(absmax + block, mask=is_block[:, None], other=0.0)
            fours = _load_fours(x, block, has_x)
            for index in tl.static_range(4):
                weight = look_up(code, lane_code, word, 8 * (index // 2) + 4 - index % 2 * 4, USES_LANES)
                weight = (weight * scale[:, :, None]).to(dtype)
                x_part = _one_of_four(fours, x, block, has_x, index, dtype)
                summed = tl.dot(weight, x_part, summed, input_precision="ieee")
    return tl.sum(summed, 0)


@triton.jit
def _multiply_dense(
    x,
    weight,
    rows,
    has_token,
    dtype: tl.constexpr,
    INPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows that are not quantized times x, [ROWS, TOKENS]."""
    parts = tl.arange(0, PARTS)
    x = _inputs(x, INPUTS, TOKENS, PARTS)
    words = parts[:, None, None] * 16 + tl.arange(0, 16)[None, None, :]
    FOUR: tl.constexpr = 1 if weight.dtype.element_ty == tl.int64 else 4
    weight += (rows[None, :, None] * (INPUTS // 4) + words) * FOUR
    summed = tl.zeros([PARTS, ROWS, TOKENS], tl.float32)
    for block in tl.range(0, INPUTS // 64, PARTS, num_stages=STAGES):
        is_block = (block + parts < INPUTS // 64)[:, None, None]
        has_x = is_block & has_token[None, None, :]
        fours, weight_fours = _load_fours(x, block, has_x), _load_fours(weight, block, is_block)
        for index in tl.static_range(4):
            part = _one_of_four(weight_fours, weight, block, is_block, index, dtype)
            x_part = _one_of_four(fours, x, block, has_x, index, dtype)
            summed = tl.dot(part, x_part, summed, input_precision="ieee")
    return tl.sum(summed, 0)


@triton.jit
def _inputs(x, INPUTS: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr):
    """Pointers [PARTS, 16, TOKENS] to the first of each four inputs."""
    fours = tl.arange(0, PARTS)[:, None, None] * 16 + tl.arange(0, 16)[None, :, None]
    FOUR: tl.constexpr = 1 if x.dtype.element_ty == tl.int64 else 4
    return x + (tl.arange(0, TOKENS)[None, None, :] * (INPUTS // 4) + fours) * FOUR


@triton.jit
def _load_fours(pointers, block, mask):
    """Four values of 16 bits each; of 32 bits nothing is loaded yet."""
    if pointers.dtype.scalar.element_ty == tl.int64:
        return tl.load(pointers + block * 16, mask=mask, other=0)
    else:
        return 0


@triton.jit
def _one_of_four(fours, pointers, block, mask, INDEX: tl.constexpr, dtype: tl.constexpr):
    if pointers.dtype.scalar.element_ty == tl.int64:
        return (fours >> 16 * INDEX).to(tl.int16).to(dtype, bitcast=True)
    else:
        return tl.load(pointers + block * 64 + INDEX, mask=mask, other=0.0)
