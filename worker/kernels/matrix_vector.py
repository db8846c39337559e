"""A linear layer for a single token: a matrix-vector product, bound by the speed of reading the weight.

Shape letters: I inputs, O outputs.
"""

import torch
import triton
import triton.language as tl

_WIDE_STEP = 4096


def product(
    x_1I: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    plus_1O: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns x · Wᵀ + bias + plus, [1, O]. Sums are in float32."""
    outputs, inputs = weight_OI.shape
    y_1O = x_1I.new_empty(1, outputs)
    # Cut as was fastest on an H200, at 4,096 and at 11,008 inputs.
    is_wide = inputs % _WIDE_STEP == 0
    rows, step, warps, unroll = (1, _WIDE_STEP, 8, 1) if is_wide else (2, 512, 2, 4)
    _product_kernel[(triton.cdiv(outputs, rows),)](
        x_1I,
        weight_OI,
        bias_O if bias_O is not None else x_1I,
        plus_1O if plus_1O is not None else x_1I,
        y_1O,
        outputs,
        weight_OI.stride(0),
        INPUTS=inputs,
        HAS_BIAS=bias_O is not None,
        HAS_PLUS=plus_1O is not None,
        ROWS=rows,
        STEP=step,
        UNROLL=unroll,
        num_warps=warps,
    )
    return y_1O


# Compiled for each number of inputs: a loop of unknown length is slower (docs/serving-speed.md).
@triton.jit
def _product_kernel(
    x,
    weight,
    bias,
    plus,
    y,
    output_count,
    weight_stride,
    INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    has_row = rows < output_count
    weight += rows[:, None].to(tl.int64) * weight_stride
    summed = tl.zeros([ROWS, STEP], tl.float32)
    for first in tl.range(0, INPUTS, STEP, loop_unroll_factor=UNROLL, num_stages=1):
        inputs = first + tl.arange(0, STEP)
        if INPUTS % STEP == 0:
            weights = tl.load(
                weight + inputs[None, :], mask=has_row[:, None], other=0.0, eviction_policy="evict_first"
            )
            x_part = tl.load(x + inputs)
        else:
            has_input = inputs < INPUTS
            has_both = has_row[:, None] & has_input[None, :]
            weights = tl.load(
                weight + inputs[None, :], mask=has_both, other=0.0, eviction_policy="evict_first"
            )
            x_part = tl.load(x + inputs, mask=has_input, other=0.0)
        summed += weights.to(tl.float32) * x_part[None, :].to(tl.float32)
    total = tl.sum(summed, 1)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=has_row, other=0.0).to(tl.float32)
    if HAS_PLUS:
        total += tl.load(plus + rows, mask=has_row, other=0.0).to(tl.float32)
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=has_row)
