"""RMSNorm (Zhang and Sennrich 2019) of a residual stream; the gradient that came past it is added on the way.

Sums are in float32; the normed input is rounded before it is multiplied with the weight, as in transformers.

T: tokens. H: the hidden size.
"""

import torch
import triton
import triton.language as tl

_WARPS = 8


def norm(
    x_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float, *, room: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed input, and what each token was divided by, inverted, [T] in float32. Behind each row of the
    first so many elements in memory are free."""
    tokens, width = x_TH.shape
    normed_TH = x_TH.new_empty(tokens, width + room)[:, :width]
    scale_T = torch.empty(tokens, dtype=torch.float32, device=x_TH.device)
    _norm_kernel[(tokens,)](
        x_TH,
        weight_H,
        normed_TH,
        scale_T,
        width,
        width + room,
        epsilon,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_WARPS,
    )
    return normed_TH, scale_T


def gradient(
    grad_TH: torch.Tensor,
    passed_TH: torch.Tensor,
    x_TH: torch.Tensor,
    weight_H: torch.Tensor,
    scale_T: torch.Tensor,
    *,
    room: int = 0,
) -> torch.Tensor:
    """The gradient of the input: through the norm, from `grad_TH`, plus the one that came past it, whose rows
    may lie apart. Behind each row of what is answered so many elements in memory are free."""
    tokens, width = x_TH.shape
    grad_x_TH = x_TH.new_empty(tokens, width + room)[:, :width]
    _gradient_kernel[(tokens,)](
        grad_TH,
        passed_TH,
        x_TH,
        weight_H,
        scale_T,
        grad_x_TH,
        width,
        passed_TH.stride(0),
        width + room,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_WARPS,
    )
    return grad_x_TH


@triton.jit
def _norm_kernel(x, weight, normed, scales, width, normed_stride, epsilon, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = token * width
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    rounded = tl.load(x + row + columns, mask=is_column, other=0.0)
    value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / width + epsilon)
    factor = tl.load(weight + columns, mask=is_column, other=0.0)
    tl.store(
        normed + token * normed_stride + columns, (value * scale).to(rounded.dtype) * factor, mask=is_column
    )
    tl.store(scales + tl.program_id(0), scale)


@triton.jit
def _gradient_kernel(
    grads, passed, x, weight, scales, grad_x, width, passed_stride, grad_x_stride, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    row = token * width
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    scale = tl.load(scales + tl.program_id(0))
    value = tl.load(x + row + columns, mask=is_column, other=0.0).to(tl.float32) * scale
    factor = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    grad = tl.load(grads + row + columns, mask=is_column, other=0.0).to(tl.float32) * factor
    past = tl.load(passed + token * passed_stride + columns, mask=is_column, other=0.0).to(tl.float32)
    through = scale * (grad - value * (tl.sum(value * grad) / width))
    tl.store(
        grad_x + token * grad_x_stride + columns, (through + past).to(grad_x.dtype.element_ty), mask=is_column
    )
