"""Gated activations in one kernel, with their gradients: SwiGLU and GeGLU (Shazeer 2020).

N: tokens. I: width.
"""

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch, lora_tiles
from worker.kernels.pending_lora import PendingLora

_BLOCK = 1024
# Outputs of a program that also computes what adapters add.
_UPDATED_BLOCK = 128


def activate(
    gate_NI: torch.Tensor, up_NI: torch.Tensor, *, is_gelu: bool = False, padding: int = 0
) -> torch.Tensor:
    """Return silu(gate) · up, or gelu(gate) · up with its approximation by tanh.

    Rows may be strided; behind those of the result, `padding` elements of memory are free. The activation is
    rounded before it is multiplied, as in transformers.
    """
    count, width = gate_NI.shape
    y_NI = gate_NI.new_empty(count, width + padding)[:, :width]
    _activate_kernel[(count, triton.cdiv(width, _BLOCK))](
        gate_NI,
        up_NI,
        y_NI,
        gate_NI.stride(0),
        up_NI.stride(0),
        width + padding,
        WIDTH=width,
        IS_GELU=is_gelu,
        BLOCK=_BLOCK,
        num_warps=4,
        **dependent_launch.options(gate_NI),
    )
    return y_NI


def update_and_activate(
    gate_up_NO: torch.Tensor, given: PendingLora, *, is_gelu: bool = False
) -> torch.Tensor:
    """As `activate` of the two halves of `gate_up_NO` plus what adapters add to them. Rows may be strided.

    For at most `lora_tiles.MAX_TOKENS` tokens.
    """
    count, width = len(gate_up_NO), gate_up_NO.shape[1] // 2
    y_NI = gate_up_NO.new_empty(count, width)
    _update_and_activate_kernel[(triton.cdiv(width, _UPDATED_BLOCK), count)](
        gate_up_NO,
        *lora_tiles.arguments(given, gate_up_NO),
        y_NI,
        gate_up_NO.stride(0),
        WIDTH=width,
        IS_GELU=is_gelu,
        BLOCK=_UPDATED_BLOCK,
        **lora_tiles.constants(given),
        num_warps=1,
        **dependent_launch.options(gate_up_NO),
    )
    return y_NI


def gradient(
    grad_NI: torch.Tensor, gate_NI: torch.Tensor, up_NI: torch.Tensor, *, is_gelu: bool = False
) -> None:
    """Overwrite gate and up with their gradients, from that of the result. Rows may be strided."""
    count, width = gate_NI.shape
    _gradient_kernel[(count, triton.cdiv(width, _BLOCK))](
        grad_NI,
        gate_NI,
        up_NI,
        grad_NI.stride(0),
        gate_NI.stride(0),
        up_NI.stride(0),
        WIDTH=width,
        IS_GELU=is_gelu,
        BLOCK=_BLOCK,
        num_warps=4,
    )


@triton.jit
def _activate_kernel(
    gate,
    up,
    y,
    gate_stride,
    up_stride,
    y_stride,
    WIDTH: tl.constexpr,
    IS_GELU: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.begin(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    each = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = each < WIDTH
    gate_value = tl.load(gate + row * gate_stride + each, mask=inside, other=0.0).to(tl.float32)
    up_value = tl.load(up + row * up_stride + each, mask=inside, other=0.0).to(tl.float32)
    active, _slope = _activation(gate_value, IS_GELU)
    active = active.to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * y_stride + each, (active * up_value).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _update_and_activate_kernel(
    gate_up,
    inner,
    slots,
    B,
    inner_stride,
    output_count,
    y,
    gate_up_stride,
    WIDTH: tl.constexpr,
    IS_GELU: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    LAYERS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    token = tl.program_id(1)
    each = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = each < WIDTH
    slot, gate_tile = lora_tiles.read(slots, B, output_count, token, each, inside, RANK)
    _slot, up_tile = lora_tiles.read(slots, B, output_count, token, WIDTH + each, inside, RANK)
    dependent_launch.wait(IS_DEPENDENT)
    at = gate_up + token.to(tl.int64) * gate_up_stride + each
    gate_value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up_value = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    gate_value += lora_tiles.update(
        inner, slot, gate_tile, B, inner_stride, output_count, token, 0, each, inside, RANK, LAYERS
    )
    up_value += lora_tiles.update(
        inner,
        slot,
        up_tile,
        B,
        inner_stride,
        output_count,
        token,
        LAYERS - 1,
        WIDTH + each,
        inside,
        RANK,
        LAYERS,
    )
    dtype = y.dtype.element_ty
    active = activate_rounded(gate_value, up_value, dtype, IS_GELU)
    tl.store(y + token.to(tl.int64) * WIDTH + each, active, mask=inside)


@triton.jit
def _gradient_kernel(
    grads,
    gate,
    up,
    grad_stride,
    gate_stride,
    up_stride,
    WIDTH: tl.constexpr,
    IS_GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    each = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = each < WIDTH
    grad = tl.load(grads + row * grad_stride + each, mask=inside, other=0.0).to(tl.float32)
    gate_value = tl.load(gate + row * gate_stride + each, mask=inside, other=0.0).to(tl.float32)
    up_value = tl.load(up + row * up_stride + each, mask=inside, other=0.0).to(tl.float32)
    active, slope = _activation(gate_value, IS_GELU)
    active = active.to(up.dtype.element_ty).to(tl.float32)
    grad_gate, grad_up = grad * up_value * slope, grad * active
    tl.store(gate + row * gate_stride + each, grad_gate.to(gate.dtype.element_ty), mask=inside)
    tl.store(up + row * up_stride + each, grad_up.to(up.dtype.element_ty), mask=inside)


@triton.jit
def activate_rounded(gate, up, dtype: tl.constexpr, IS_GELU: tl.constexpr):
    """The activation of float32 sums, each rounded before and after it, as of outputs in `dtype`."""
    active, _slope = _activation(gate.to(dtype).to(tl.float32), IS_GELU)
    return (active.to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)).to(dtype)


@triton.jit
def _activation(value, IS_GELU: tl.constexpr):
    """The activation and its derivative."""
    if IS_GELU:
        # gelu(x) = x / 2 · (1 + tanh(s (x + c x³))), and tanh(z) = 2 · sigmoid(2z) - 1.
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        half = tl.sigmoid(2.0 * inner)
        active = value * half
        inner_slope = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * value * value)
        slope = half + 2.0 * value * half * (1.0 - half) * inner_slope
    else:
        half = tl.sigmoid(value)
        active = value * half
        slope = half * (1.0 + value * (1.0 - half))
    return active, slope
