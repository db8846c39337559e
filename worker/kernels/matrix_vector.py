"""A linear layer for a single token: a matrix-vector product, bound by the speed of reading the weight.

Shape letters: I inputs, O outputs.
"""

import torch
import triton
import triton.language as tl


def product(x_1I: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """Returns x · Wᵀ + bias, [1, O]. Sums are in float32."""
    outputs, inputs = weight_OI.shape
    y_1O = x_1I.new_empty(1, outputs)
    # A program reads whole rows of the weight in steps: one row where steps of 4,096 inputs fit, else two.
    is_wide = inputs % 4096 == 0
    rows = 1 if is_wide else 2
    _product_kernel[(triton.cdiv(outputs, rows),)](
        x_1I,
        weight_OI,
        bias_O if bias_O is not None else x_1I,
        y_1O,
        outputs,
        inputs,
        weight_OI.stride(0),
        HAS_BIAS=bias_O is not None,
        ROWS=rows,
        STEP=4096 if is_wide else 2048,
        num_warps=4,
        num_stages=3,
    )
    return y_1O


@triton.jit
def _product_kernel(
    x,
    weight,
    bias,
    y,
    output_count,
    input_count,
    weight_stride,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    has_row = rows < output_count
    summed = tl.zeros([ROWS, STEP], tl.float32)
    for first in range(0, input_count, STEP):
        inputs = first + tl.arange(0, STEP)
        has_input = inputs < input_count
        weights = tl.load(
            weight + rows[:, None].to(tl.int64) * weight_stride + inputs[None, :],
            mask=has_row[:, None] & has_input[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        x_part = tl.load(x + inputs, mask=has_input, other=0.0)
        summed += weights.to(tl.float32) * x_part[None, :].to(tl.float32)
    total = tl.sum(summed, 1)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=has_row, other=0.0).to(tl.float32)
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=has_row)
