"""RMSNorm (Zhang and Sennrich 2019), its gradient for the residual stream, and adding to that before it.

Sums are in float32; the normed input is rounded before it is multiplied with the weight, as in transformers,
or, in Gemma's kind, multiplied with one more than the weight and then rounded. T: tokens. H: the width, of a
hidden state or of a head.
"""

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch, lora_tiles
from worker.kernels.pending_lora import PendingLora

_WARPS = 8
_MIN_ELEMENTS = 2048  # of a program
_MAX_WARPS = 32


def rms_norm_and_scale(
    x_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float, *, adds_one: bool = False, padding: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed input, and what each token was multiplied with, [T] in float32, for `gradient`.

    Behind each row of the first, `padding` elements of memory are free. `adds_one`: Gemma's kind.
    """
    tokens, width = x_TH.shape
    normed_TH = x_TH.new_empty(tokens, width + padding)[:, :width]
    scale_T = torch.empty(tokens, dtype=torch.float32, device=x_TH.device)
    rows = _rows(width)
    _rms_norm_kernel[(triton.cdiv(tokens, rows),)](
        x_TH,
        weight_H,
        normed_TH,
        scale_T,
        tokens,
        width,
        x_TH.stride(0),
        width + padding,
        epsilon,
        ADDS_ONE=adds_one,
        ROWS=rows,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_WARPS,
        **dependent_launch.options(x_TH),
    )
    return normed_TH, scale_T


def add_and_norm(
    stream_TH: torch.Tensor,
    y_TH: torch.Tensor,
    update: PendingLora | None,
    weight_H: torch.Tensor,
    epsilon: float,
    *,
    output_weight_H: torch.Tensor | None = None,
    adds_one: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stream plus y and what adapters add to y, and the norm of that; both [T, H].

    `output_weight_H`: y is normed with this weight before it is added, as in Gemma 3. Rows of `y_TH` may be
    strided; `stream_TH` is contiguous.
    """
    tokens, width = stream_TH.shape
    new_TH, normed_TH = torch.empty_like(stream_TH), torch.empty_like(stream_TH)
    block = triton.next_power_of_2(width)
    _add_and_norm_kernel[(tokens,)](
        stream_TH,
        y_TH,
        *lora_tiles.arguments(update, y_TH),
        weight_H,
        output_weight_H if output_weight_H is not None else weight_H,
        new_TH,
        normed_TH,
        width,
        y_TH.stride(0),
        epsilon,
        HAS_OUTPUT_NORM=output_weight_H is not None,
        ADDS_ONE=adds_one,
        BLOCK=block,
        **lora_tiles.constants(update),
        # A thread sums whole columns of B where it has eight of them.
        num_warps=min(_MAX_WARPS, max(4, block // 256)) if update else _WARPS,
        **dependent_launch.options(y_TH),
    )
    return new_TH, normed_TH


def gradient(
    grad_TH: torch.Tensor,
    passed_TH: torch.Tensor | None,
    x_TH: torch.Tensor,
    weight_H: torch.Tensor,
    scale_T: torch.Tensor,
    *,
    adds_one: bool = False,
    padding: int = 0,
) -> torch.Tensor:
    """Return the gradient of x: that through the norm, from `grad_TH`, plus `passed_TH`, the gradient of what
    else reads x; None: nothing does. Rows may be strided; behind those of the result, `padding` elements are
    free.
    """
    tokens, width = x_TH.shape
    grad_x_TH = x_TH.new_empty(tokens, width + padding)[:, :width]
    rows = _rows(width)
    other_TH = grad_TH if passed_TH is None else passed_TH
    _gradient_kernel[(triton.cdiv(tokens, rows),)](
        grad_TH,
        other_TH,
        x_TH,
        weight_H,
        scale_T,
        grad_x_TH,
        tokens,
        width,
        grad_TH.stride(0),
        other_TH.stride(0),
        x_TH.stride(0),
        width + padding,
        ADDS_ONE=adds_one,
        IS_PASSED=passed_TH is not None,
        ROWS=rows,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_WARPS,
    )
    return grad_x_TH


def _rows(width: int) -> int:
    """Rows of a program: one of a hidden state, several of a head."""
    return max(1, _MIN_ELEMENTS // triton.next_power_of_2(width))


@triton.jit(do_not_specialize=["tokens"])
def _rms_norm_kernel(
    x,
    weight,
    normed,
    scales,
    tokens,
    width,
    x_stride,
    normed_stride,
    epsilon,
    ADDS_ONE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    is_token, is_column = token < tokens, columns < width
    factor = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    dependent_launch.wait(IS_DEPENDENT)
    inside = is_token[:, None] & is_column
    row = token.to(tl.int64)[:, None]
    value = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / width + epsilon)
    value = value * scale[:, None]
    if ADDS_ONE:
        factor = factor + 1.0
    else:
        value = value.to(normed.dtype.element_ty).to(tl.float32)
    value = value * factor
    tl.store(normed + row * normed_stride + columns, value.to(normed.dtype.element_ty), mask=inside)
    tl.store(scales + token, scale, mask=is_token)


@triton.jit
def _add_and_norm_kernel(
    stream,
    y,
    inner,
    slots,
    B,
    inner_stride,
    output_count,
    weight,
    output_weight,
    new,
    normed,
    width,
    y_stride,
    epsilon,
    HAS_OUTPUT_NORM: tl.constexpr,
    ADDS_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    LAYERS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    if RANK > 0:
        slot, tile = lora_tiles.read(slots, B, output_count, token, columns, inside, RANK)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_OUTPUT_NORM:
        output_factor = tl.load(output_weight + columns, mask=inside, other=0.0).to(tl.float32)
    dependent_launch.wait(IS_DEPENDENT)
    value = tl.load(y + token * y_stride + columns, mask=inside, other=0.0).to(tl.float32)
    at = token * width + columns
    before = tl.load(stream + at, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        value += lora_tiles.update(
            inner, slot, tile, B, inner_stride, output_count, token, 0, columns, inside, RANK, LAYERS
        )
    dtype = normed.dtype.element_ty
    if HAS_OUTPUT_NORM:
        value = value.to(dtype).to(tl.float32)
        value = _normed(value, output_factor, width, epsilon, ADDS_ONE, dtype)
        value = value.to(dtype).to(tl.float32)
    value = (value + before).to(dtype)
    tl.store(new + at, value, mask=inside)
    value = _normed(value.to(tl.float32), factor, width, epsilon, ADDS_ONE, dtype)
    tl.store(normed + at, value.to(dtype), mask=inside)


@triton.jit
def _normed(value, factor, width, epsilon, ADDS_ONE: tl.constexpr, dtype: tl.constexpr):
    value = value * tl.rsqrt(tl.sum(value * value, 0) / width + epsilon)
    if ADDS_ONE:
        factor = factor + 1.0
    else:
        value = value.to(dtype).to(tl.float32)
    return value * factor


@triton.jit(do_not_specialize=["tokens"])
def _gradient_kernel(
    grads,
    passed,
    x,
    weight,
    scales,
    grad_x,
    tokens,
    width,
    grad_stride,
    passed_stride,
    x_stride,
    grad_x_stride,
    ADDS_ONE: tl.constexpr,
    IS_PASSED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    is_token, is_column = token < tokens, columns < width
    inside = is_token[:, None] & is_column
    row = token.to(tl.int64)[:, None]
    scale = tl.load(scales + token, mask=is_token, other=0.0)[:, None]
    value = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32) * scale
    factor = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    if ADDS_ONE:
        factor = factor + 1.0
    grad = tl.load(grads + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32) * factor
    mean = tl.sum(value * grad, 1) / width
    total = scale * (grad - value * mean[:, None])
    if IS_PASSED:
        total += tl.load(passed + row * passed_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x + row * grad_x_stride + columns, total.to(grad_x.dtype.element_ty), mask=inside)
