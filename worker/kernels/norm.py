"""RMSNorm (Zhang and Sennrich 2019): for serving, and with its gradient for the residual stream in training.

Sums are in float32; the normed input is rounded before it is multiplied with the weight, as in transformers.
T: tokens. H: the width, of a hidden state or of a head.
"""

import torch
import triton
import triton.language as tl

_WARPS = 8


def rms_norm(x: torch.Tensor, weight_H: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the contiguous x [..., H], divided by the root of its mean square, times the weight."""
    width = x.shape[-1]
    y = torch.empty_like(x)
    _rms_norm_kernel[(x.numel() // width,)](
        x, weight_H, y, epsilon, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=_WARPS
    )
    return y


def rms_norm_and_scale(
    x_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float, *, padding: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed input, and what each token was multiplied with, [T] in float32, for `gradient`.

    Behind each row of the first, `padding` elements of memory are free.
    """
    tokens, width = x_TH.shape
    normed_TH = x_TH.new_empty(tokens, width + padding)[:, :width]
    scale_T = torch.empty(tokens, dtype=torch.float32, device=x_TH.device)
    _rms_norm_and_scale_kernel[(tokens,)](
        x_TH,
        weight_H,
        normed_TH,
        scale_T,
        width,
        width + padding,
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
    padding: int = 0,
) -> torch.Tensor:
    """Return the gradient of x: that through the norm, from `grad_TH`, plus `passed_TH`, the gradient of what
    else reads x. Rows of `passed_TH` may be strided; behind those of the result, `padding` elements are free.
    """
    tokens, width = x_TH.shape
    grad_x_TH = x_TH.new_empty(tokens, width + padding)[:, :width]
    _gradient_kernel[(tokens,)](
        grad_TH,
        passed_TH,
        x_TH,
        weight_H,
        scale_T,
        grad_x_TH,
        width,
        passed_TH.stride(0),
        width + padding,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_WARPS,
    )
    return grad_x_TH


@triton.jit
def _rms_norm_kernel(x, weight, y, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    is_column = columns < WIDTH
    normed, _scale = _normalize(x + row, weight, columns, is_column, WIDTH, epsilon)
    tl.store(y + row + columns, normed.to(y.dtype.element_ty), mask=is_column)


@triton.jit
def _rms_norm_and_scale_kernel(x, weight, normed, scales, width, normed_stride, epsilon, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    value, scale = _normalize(x + token * width, weight, columns, is_column, width, epsilon)
    tl.store(normed + token * normed_stride + columns, value, mask=is_column)
    tl.store(scales + tl.program_id(0), scale)


@triton.jit
def _normalize(x_row, weight, columns, is_column, width, epsilon):
    """One row, normed, rounded to its own type and times the weight; and the factor that normed it."""
    rounded = tl.load(x_row + columns, mask=is_column, other=0.0)
    value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / width + epsilon)
    factor = tl.load(weight + columns, mask=is_column, other=0.0)
    return (value * scale).to(rounded.dtype) * factor, scale


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
