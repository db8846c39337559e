"""Linear layers of bitsandbytes' 4-bit weights for a single token.

Weights are not rounded to the type of x: the codes of half a block are multiplied with x and summed in
float32, then the sum is multiplied with the block's scale. So results are nearer to the exact product than
those of dequantized weights, each of which is rounded by up to 0.4% of itself in bfloat16, 0.05% in float16:
they differ by the order of the sums, and by the rounding of the result, alone.

Shape letters: I inputs, O outputs, C further rows, which are not quantized.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch

BLOCK = 64  # weights to a scale
_ALIGNMENT = 16  # bytes to a load


class Cut(NamedTuple):
    """Each warp of a program computes `rows` outputs."""

    rows: int
    warps: int


# (most outputs, cut): the fastest on an H200, for 4096 inputs with 4096, 12288 and 22016 outputs and for
# 11008 with 4096.
_CUTS = ((8192, Cut(2, 4)), (16384, Cut(4, 4)))
_CUT_OF_MORE_OUTPUTS = Cut(8, 2)


def can_multiply(x_1I: torch.Tensor, packed: torch.Tensor, outputs: int) -> bool:
    """Whether there are enough outputs for a warp, and the addresses are multiples of 16."""
    is_aligned = all(tensor.data_ptr() % _ALIGNMENT == 0 for tensor in (x_1I, packed))
    return is_aligned and outputs >= _cut(outputs).rows


def product(
    x_1I: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    plus_1O: torch.Tensor | None = None,
    rows_CI: torch.Tensor | None = None,
    *,
    cut: Cut | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x · Wᵀ + bias + plus, [1, O], and x times `rows_CI`, [1, C].

    `packed`, `absmax` and `code` are those of `four_bit_matmul.products`.
    """
    inputs = x_1I.shape[1]
    outputs = absmax.numel() * BLOCK // inputs
    row_count = len(rows_CI) if rows_CI is not None else 0
    y_1O, inner_1C = x_1I.new_empty(1, outputs), x_1I.new_empty(1, row_count)
    cut = cut or _cut(outputs)
    _vector_kernel[(row_count + triton.cdiv(outputs, cut.rows * cut.warps),)](
        x_1I.contiguous(),
        packed.view(-1).view(torch.int32),
        absmax,
        code,
        bias_O if bias_O is not None else y_1O,
        plus_1O.contiguous() if plus_1O is not None else y_1O,
        rows_CI.contiguous() if rows_CI is not None else y_1O,
        y_1O,
        inner_1C,
        outputs,
        row_count,
        INPUTS=inputs,
        HAS_BIAS=bias_O is not None,
        HAS_PLUS=plus_1O is not None,
        HAS_ROWS=rows_CI is not None,
        USES_LANES=isinstance(_vector_kernel, triton.JITFunction),  # not by Triton's interpreter
        ROWS=cut.rows,
        WARPS=cut.warps,
        num_warps=cut.warps,
        **dependent_launch.options(x_1I),
    )
    return y_1O, inner_1C


def _cut(outputs: int) -> Cut:
    return next((cut for most, cut in _CUTS if outputs <= most), _CUT_OF_MORE_OUTPUTS)


# Tensors have one element for each thread. A step of the loop takes 1024 inputs of each of a warp's rows,
# half a block for each lane.
@triton.jit(do_not_specialize=["row_count"])
def _vector_kernel(
    x,
    packed,
    absmax,
    code,
    bias,
    plus,
    dense_rows,
    y,
    inner,
    output_count,
    row_count,
    INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    USES_LANES: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Each of the first `row_count` programs computes the product with a row that is not quantized.

    The next kernel is not started early: its programs would leave some multiprocessors more of the next
    product's programs, all of which run at the same time, than others.
    """
    if HAS_ROWS and tl.program_id(0) < row_count:
        dependent_launch.wait(IS_DEPENDENT)
        _multiply_dense(x, dense_rows, inner, tl.program_id(0), INPUTS, WARPS * 256)
        return
    threads = tl.arange(0, WARPS * 32)
    first_warp = (tl.program_id(0) - row_count) * WARPS
    first_row = _first_row(first_warp + (threads >> 5), output_count, ROWS)
    lane = threads & 31
    sums = _multiply(x, packed, absmax, code, lane, first_row, INPUTS, USES_LANES, ROWS, IS_DEPENDENT)
    warp_row = _first_row(first_warp + tl.arange(0, WARPS), output_count, ROWS)
    for index in tl.static_range(ROWS):
        row = warp_row + index
        total = tl.sum(tl.reshape(sums[index], [WARPS, 32]), 1)
        if HAS_BIAS:
            total += tl.load(bias + row).to(tl.float32)
        if HAS_PLUS:
            total += tl.load(plus + row).to(tl.float32)
        tl.store(y + row, total.to(y.dtype.element_ty))


@triton.jit
def _first_row(warp, output_count, ROWS: tl.constexpr):
    """Where the outputs are not whole programs, several warps compute the last rows."""
    return tl.minimum(warp * ROWS, output_count - ROWS)


@triton.jit
def _multiply(
    x,
    packed,
    absmax,
    code,
    lane,
    first_row,
    INPUTS: tl.constexpr,
    USES_LANES: tl.constexpr,
    ROWS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """`ROWS` rows of W times x: a tuple of sums, of which each lane has its part.

    The first weights are read before the kernel that computes x has ended.
    """
    lane_code = tl.load(code + (lane & 15))
    packed += first_row.to(tl.int64) * (INPUTS // 8)
    absmax += first_row.to(tl.int64) * (INPUTS // 64)
    sums = (tl.zeros_like(lane_code),) * ROWS
    weights = _load_weights(packed, absmax, lane, INPUTS, USES_LANES, ROWS)
    dependent_launch.wait(IS_DEPENDENT)
    sums = _add_step(sums, x, *weights, code, lane_code, lane, INPUTS, USES_LANES, ROWS)
    for begin in tl.range(32, INPUTS // 32, 32, num_stages=1):
        half = begin + lane
        weights = _load_weights(packed, absmax, half, INPUTS, USES_LANES, ROWS)
        sums = _add_step(sums, x, *weights, code, lane_code, half, INPUTS, USES_LANES, ROWS)
    return sums


@triton.jit
def _load_weights(packed, absmax, half, INPUTS: tl.constexpr, USES_LANES: tl.constexpr, ROWS: tl.constexpr):
    """Half a block of each row: tuples of four words each, and of scales, zero behind the last block."""
    HALVES: tl.constexpr = INPUTS // 32
    own = tl.minimum(half, HALVES - 1)
    words = ()  # type: tuple[tl.tensor, ...]
    scales = ()  # type: tuple[tl.tensor, ...]
    for row in tl.static_range(ROWS):
        words += _load_four(packed + (own * 4 + row * (INPUTS // 8)), True, USES_LANES)
        scale_at = absmax + (own // 2 + row * (INPUTS // 64))
        scales += (tl.load(scale_at, mask=half < HALVES, other=0.0),)
    return words, scales


@triton.jit
def _add_step(
    sums,
    x,
    words,
    scales,
    code,
    lane_code,
    half,
    INPUTS: tl.constexpr,
    USES_LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The sums with the products of half a block of each row."""
    own = tl.minimum(half, INPUTS // 32 - 1)
    parts = (tl.zeros_like(lane_code),) * ROWS
    for word in tl.static_range(4):
        eight = _load_eight(x + (own * 32 + word * 8), USES_LANES)
        new_parts = ()  # type: tuple[tl.tensor, ...]
        for row in tl.static_range(ROWS):
            new_parts += (_add_eight(parts[row], eight, words[4 * row + word], code, lane_code, USES_LANES),)
        parts = new_parts
    new_sums = ()  # type: tuple[tl.tensor, ...]
    for row in tl.static_range(ROWS):
        new_sums += (sums[row] + parts[row] * scales[row],)
    return new_sums


@triton.jit
def _add_eight(total, eight, word, code, lane_code, USES_LANES: tl.constexpr):
    """Adds the products of a word's eight codes with eight inputs."""
    for index in tl.static_range(8):
        weight = look_up(code, lane_code, word, 8 * (index // 2) + 4 - index % 2 * 4, USES_LANES)
        total += weight * eight[index]
    return total


@triton.jit
def look_up(code, lane_code, word, SHIFT: tl.constexpr, USES_LANES: tl.constexpr):
    """The codes of four bits of each word, from bit `SHIFT` on.

    Lanes i and i + 16 of a warp hold code i. `shfl` reads it within half a warp (segment mask 0x10), by the
    lowest four bits of the index: no address is computed, and no bank is read twice.
    """
    if USES_LANES:
        return tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, $2, 0x101f, 0xffffffff;",
            "=f,f,r",
            [lane_code, word >> SHIFT],
            tl.float32,
            is_pure=True,
            pack=1,
        )
    return tl.load(code + ((word >> SHIFT) & 15))


@triton.jit
def _load_eight(x, USES_LANES: tl.constexpr):
    """Eight inputs from each pointer on, as float32."""
    dtype: tl.constexpr = x.dtype.scalar.element_ty
    pointers = x.to(tl.pointer_type(tl.int32))
    words = _load_four(pointers, False, USES_LANES)
    if dtype == tl.float32:
        words += _load_four(pointers + 4, False, USES_LANES)
    values = ()  # type: tuple[tl.tensor, ...]
    for index in tl.static_range(8):
        if dtype == tl.float32:
            value = words[index].to(tl.float32, bitcast=True)
        elif dtype == tl.bfloat16:  # one instruction for each
            word = words[index // 2]
            value = (word << 16 if index % 2 == 0 else word & -65536).to(tl.float32, bitcast=True)
        else:
            bits = (words[index // 2] >> 16 * (index % 2)).to(tl.int16)
            value = bits.to(dtype, bitcast=True).to(tl.float32)
        values += (value,)
    return values


@triton.jit
def _load_four(pointers, IS_WEIGHT: tl.constexpr, USES_LANES: tl.constexpr):
    """Four integers of 32 bits from each pointer on, by one instruction: Triton itself would take four.

    `IS_WEIGHT`: they are read once, and no kernel of a forward pass writes them.
    """
    if USES_LANES:
        HINT: tl.constexpr = ".nc.L1::no_allocate" if IS_WEIGHT else ""
        return tl.inline_asm_elementwise(
            "ld.global" + HINT + ".v4.b32 {$0, $1, $2, $3}, [$4];",
            "=r,=r,=r,=r,l",
            [pointers],
            (tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,  # it stays behind `dependent_launch.wait`
            pack=1,
        )
    return tl.load(pointers), tl.load(pointers + 1), tl.load(pointers + 2), tl.load(pointers + 3)


@triton.jit
def _multiply_dense(x, dense_rows, inner, row, INPUTS: tl.constexpr, STEP: tl.constexpr):
    """Stores the product of one row with x."""
    dense_rows += row.to(tl.int64) * INPUTS
    summed = tl.zeros([STEP], tl.float32)
    for begin in tl.range(0, INPUTS, STEP, num_stages=1):
        inputs = begin + tl.arange(0, STEP)
        has_input = inputs < INPUTS
        weights = tl.load(dense_rows + inputs, mask=has_input, other=0.0).to(tl.float32)
        summed += weights * tl.load(x + inputs, mask=has_input, other=0.0).to(tl.float32)
    tl.store(inner + row, tl.sum(summed, 0).to(inner.dtype.element_ty))
