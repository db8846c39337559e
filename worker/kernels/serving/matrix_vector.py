"""A linear layer for a single token: a matrix-vector product, bound by the speed of reading the weight.

Shape letters: I inputs, O outputs.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch

_WIDE_STEP = 4096


@dataclass(frozen=True)
class InputNorm:
    """An RMSNorm of the input of a product, which each program of the product computes. It is not rounded."""

    weight_I: torch.Tensor
    epsilon: float


def product(
    x_1I: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    plus_1O: torch.Tensor | None = None,
    *,
    norm: InputNorm | None = None,
    is_gated: bool = False,
) -> torch.Tensor:
    """Returns x · Wᵀ + bias + plus, [1, O]; with a norm, of the normed x. Sums are in float32.

    `is_gated`: silu(gate) · up, [1, O / 2]; the weight of gate lies over that of up, and there is no bias.
    """
    inputs = weight_OI.shape[1]
    outputs = len(weight_OI) // 2 if is_gated else len(weight_OI)
    y_1O = x_1I.new_empty(1, outputs)
    rows, step, warps, unroll = _cut(inputs, has_norm=norm is not None, is_gated=is_gated)
    _product_kernel[(triton.cdiv(outputs, rows),)](
        x_1I,
        norm.weight_I if norm else x_1I,
        weight_OI,
        bias_O if bias_O is not None else x_1I,
        plus_1O if plus_1O is not None else x_1I,
        y_1O,
        outputs,
        weight_OI.stride(0),
        norm.epsilon if norm else 0.0,
        INPUTS=inputs,
        HAS_NORM=norm is not None,
        IS_GATED=is_gated,
        HAS_BIAS=bias_O is not None,
        HAS_PLUS=plus_1O is not None,
        ROWS=rows,
        STEP=step,
        UNROLL=unroll,
        num_warps=warps,
        **dependent_launch.options(x_1I),
    )
    return y_1O


def _cut(inputs: int, *, has_norm: bool, is_gated: bool) -> tuple[int, int, int, int]:
    """Rows and inputs of a tile, warps and unrolling: the fastest on an H200 at 4,096 and 11,008 inputs."""
    if inputs % _WIDE_STEP:
        return 2, 512, 2, 4
    if is_gated:
        return 2, _WIDE_STEP // 2, 8, 2
    return (4, _WIDE_STEP, 16, 1) if has_norm else (1, _WIDE_STEP, 8, 1)


# Compiled for each number of inputs: a loop of unknown length is slower (docs/serving-speed.md).
@triton.jit
def _product_kernel(
    x,
    norm_weight,
    weight,
    bias,
    plus,
    y,
    output_count,
    weight_stride,
    epsilon,
    INPUTS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """The first `UNROLL` tiles of the weight are read before the kernel that computes x has ended."""
    dependent_launch.launch_next(IS_DEPENDENT)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    has_row = rows < output_count
    weight += rows[:, None].to(tl.int64) * weight_stride
    up_weight = weight + output_count * weight_stride
    sums = (
        tl.zeros([ROWS, STEP], tl.float32),
        tl.zeros([ROWS, STEP], tl.float32),
        tl.zeros([STEP], tl.float32),
    )
    tiles = ()  # type: tuple[tl.tensor, ...]
    for index in tl.static_range(UNROLL):
        inputs = index * STEP + tl.arange(0, STEP)
        tiles += _load_tile(weight, up_weight, norm_weight, inputs, has_row, INPUTS, STEP, IS_GATED, HAS_NORM)
    dependent_launch.wait(IS_DEPENDENT)
    for index in tl.static_range(UNROLL):
        x_part = _load_vector(x, index * STEP + tl.arange(0, STEP), INPUTS, STEP)
        sums = _add_tile(sums, tiles, index, x_part, IS_GATED, HAS_NORM)
    for first in tl.range(UNROLL * STEP, INPUTS, STEP, loop_unroll_factor=UNROLL, num_stages=1):
        inputs = first + tl.arange(0, STEP)
        tile = _load_tile(weight, up_weight, norm_weight, inputs, has_row, INPUTS, STEP, IS_GATED, HAS_NORM)
        sums = _add_tile(sums, tile, 0, _load_vector(x, inputs, INPUTS, STEP), IS_GATED, HAS_NORM)
    summed, up_summed, squares = sums
    total = tl.sum(summed, 1)
    scale = 1.0
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(squares, 0) / INPUTS + epsilon)
        total *= scale
    if IS_GATED:
        total = total * tl.sigmoid(total) * (tl.sum(up_summed, 1) * scale)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=has_row, other=0.0).to(tl.float32)
    if HAS_PLUS:
        total += tl.load(plus + rows, mask=has_row, other=0.0).to(tl.float32)
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=has_row)


@triton.jit
def _load_tile(
    weight,
    up_weight,
    norm_weight,
    inputs,
    has_row,
    INPUTS: tl.constexpr,
    STEP: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Weights of some rows and inputs, those of up and of the norm; where there are none, the first again."""
    weights = _load(weight, inputs, has_row, INPUTS, STEP)
    up_weights = _load(up_weight, inputs, has_row, INPUTS, STEP) if IS_GATED else weights
    factors = _load_vector(norm_weight, inputs, INPUTS, STEP) if HAS_NORM else weights
    return weights, up_weights, factors


@triton.jit
def _add_tile(sums, tiles, index: tl.constexpr, x_part, IS_GATED: tl.constexpr, HAS_NORM: tl.constexpr):
    """The sums with the products of one of some tiles, and with the squares of x for the norm."""
    summed, up_summed, squares = sums
    if HAS_NORM:
        squares += x_part * x_part
        x_part *= tiles[3 * index + 2]
    summed += tiles[3 * index].to(tl.float32) * x_part[None, :]
    if IS_GATED:
        up_summed += tiles[3 * index + 1].to(tl.float32) * x_part[None, :]
    return summed, up_summed, squares


@triton.jit
def _load(weight, inputs, has_row, INPUTS: tl.constexpr, STEP: tl.constexpr):
    """Weights of some rows and inputs. They are read once: nothing keeps them in a cache."""
    mask = has_row[:, None]
    if INPUTS % STEP != 0:
        mask = mask & (inputs < INPUTS)[None, :]
    return tl.load(weight + inputs[None, :], mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _load_vector(vector, inputs, INPUTS: tl.constexpr, STEP: tl.constexpr):
    if INPUTS % STEP == 0:
        return tl.load(vector + inputs).to(tl.float32)
    else:
        return tl.load(vector + inputs, mask=inputs < INPUTS, other=0.0).to(tl.float32)
