"""A linear layer for a few tokens: a product whose time is that of reading the weight.

cuBLAS reads the weight at half to four fifths of the memory's speed there, and its kernels do not let the
next one start early. Shape letters: N tokens, I inputs, O outputs.
"""

import sys
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch

MAX_TOKENS = 32
_FEWEST_TOKENS = 8  # of a tile
_ALIGNMENT = 16  # bytes to a load
_FEW_OUTPUTS = 8192


class DenseTiles(NamedTuple):
    """A program computes `rows` outputs. Of every `warps` times `inputs` inputs each warp takes a part.

    `stages`: one more than the steps whose weights are in shared memory or on their way to it.
    """

    rows: int
    warps: int
    inputs: int
    stages: int

    def shared_bytes(self, tokens: int) -> int:
        """What a program takes of a multiprocessor's shared memory, of weights and inputs of 16 bits."""
        return 2 * (self.stages - 1) * self.warps * self.inputs * (self.rows + tokens)


# By the tokens of a tile, for few outputs and for many: the fastest on an H200 for products of 4096 and 11008
# inputs with 4096, 12288, 22016 and 32000 outputs.
_TILES = {
    8: (DenseTiles(32, 2, 128, 4), DenseTiles(32, 2, 128, 4)),
    16: (DenseTiles(16, 2, 256, 4), DenseTiles(32, 2, 64, 6)),
    32: (DenseTiles(32, 4, 128, 3), DenseTiles(32, 1, 256, 3)),
}


def can_multiply(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """Whether there are few tokens, numbers have 16 bits, rows of x and W begin where a load may, and the
    device has enough shared memory. GPUs of consumers have less than those of data centers.
    """
    count, (outputs, inputs) = len(x_NI), weight_OI.shape
    if count > MAX_TOKENS or not x_NI.element_size() == weight_OI.element_size() == 2:
        return False
    has_rows = weight_OI.stride() == (inputs, 1) and 2 * inputs % _ALIGNMENT == 0
    is_aligned = all(one.data_ptr() % _ALIGNMENT == 0 for one in (x_NI, weight_OI))
    needed = _tiles(count, outputs).shared_bytes(_padded(count))
    return has_rows and is_aligned and needed <= _shared_memory(x_NI.device)


def product(
    x_NI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    plus_NO: torch.Tensor | None = None,
    *,
    tiles: DenseTiles | None = None,
) -> torch.Tensor:
    """Returns x · Wᵀ + bias + plus, [N, O], where `can_multiply` holds. Sums are in float32.

    `tiles`: how outputs and inputs are divided.
    """
    count, (outputs, inputs) = len(x_NI), weight_OI.shape
    tiles = tiles or _tiles(count, outputs)
    y_NO = x_NI.new_empty(count, outputs)
    _product_kernel[(triton.cdiv(outputs, tiles.rows),)](
        x_NI.contiguous(),
        weight_OI,
        bias_O if bias_O is not None else y_NO,
        plus_NO.contiguous() if plus_NO is not None else y_NO,
        y_NO,
        count,
        outputs,
        INPUTS=inputs,
        HAS_BIAS=bias_O is not None,
        HAS_PLUS=plus_NO is not None,
        TOKENS=_padded(count),
        ROWS=tiles.rows,
        PARTS=tiles.warps,
        STEP=tiles.inputs,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
        **dependent_launch.options(x_NI),
    )
    return y_NO


def _tiles(count: int, outputs: int) -> DenseTiles:
    return _TILES[_padded(count)][outputs > _FEW_OUTPUTS]


def _padded(count: int) -> int:
    return max(_FEWEST_TOKENS, triton.next_power_of_2(count))


@cache
def _shared_memory(device: torch.device) -> int:
    """The bytes that a program may have; on a CPU, in Triton's interpreter, any number."""
    if device.type == "cpu":
        return sys.maxsize
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    found: int = properties["max_shared_mem"]
    return found


@triton.jit(do_not_specialize=["count"])
def _product_kernel(
    x,
    weight,
    bias,
    plus,
    y,
    count,
    output_count,
    INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """The first weights are read into the L2 cache before the kernel that computes x has ended."""
    dependent_launch.launch_next(IS_DEPENDENT)
    tokens = tl.arange(0, TOKENS)
    has_token = tokens < count
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own_rows = tl.minimum(rows, output_count - 1).to(tl.int64)
    parts = tl.arange(0, PARTS)
    inputs = parts[:, None] * STEP + tl.arange(0, STEP)[None, :]
    weight += own_rows[None, :, None] * INPUTS
    if IS_DEPENDENT:
        # A cache line is 64 weights.
        lines = parts[:, None] * STEP + tl.arange(0, STEP // 64)[None, :] * 64
        _prefetch(weight + tl.minimum(lines, INPUTS - 1)[:, None, :])
    weight += inputs[:, None, :]
    x += tokens[None, None, :] * INPUTS + inputs[:, :, None]
    dependent_launch.wait(IS_DEPENDENT)
    summed = tl.zeros([PARTS, ROWS, TOKENS], tl.float32)
    for first in tl.range(0, INPUTS, PARTS * STEP, num_stages=STAGES):
        if INPUTS % (PARTS * STEP) == 0:
            weights = tl.load(weight + first)
            x_part = tl.load(x + first, mask=has_token[None, None, :], other=0.0)
        else:
            has_input = first + inputs < INPUTS
            weights = tl.load(weight + first, mask=has_input[:, None, :], other=0.0)
            x_part = tl.load(x + first, mask=has_input[:, :, None] & has_token[None, None, :], other=0.0)
        summed = tl.dot(weights, x_part, summed)
    store_product(tl.sum(summed, 0), y, bias, plus, rows, tokens, count, output_count, HAS_BIAS, HAS_PLUS)


@triton.jit
def store_product(
    total,
    y,
    bias,
    plus,
    rows,
    tokens,
    count,
    output_count,
    HAS_BIAS: tl.constexpr,
    HAS_PLUS: tl.constexpr,
):
    """Store sums [rows, tokens] as a part of y [tokens, outputs], with bias and plus added in float32."""
    has_row = rows[:, None] < output_count
    has_both = has_row & (tokens < count)[None, :]
    at = tokens[None, :] * output_count + rows[:, None]
    if HAS_BIAS:
        total += tl.load(bias + rows[:, None], mask=has_row, other=0.0).to(tl.float32)
    if HAS_PLUS:
        total += tl.load(plus + at, mask=has_both, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=has_both)


@triton.jit
def _prefetch(pointers):
    """Read the cache lines of these addresses into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers], tl.int32, is_pure=False, pack=1
    )
