"""SwiGLU (Shazeer 2020) in one kernel. N: tokens, I: width."""

import torch
import triton
import triton.language as tl


def silu_times(gate_NI: torch.Tensor, up_NI: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) · up. Rows of both may be strided."""
    count, width = gate_NI.shape
    y_NI = gate_NI.new_empty(count, width)
    block = 1024
    _silu_times_kernel[(count, triton.cdiv(width, block))](
        gate_NI, up_NI, y_NI, gate_NI.stride(0), up_NI.stride(0), WIDTH=width, BLOCK=block, num_warps=4
    )
    return y_NI


@triton.jit
def _silu_times_kernel(gate, up, y, gate_stride, up_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    each = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = each < WIDTH
    gate_value = tl.load(gate + row * gate_stride + each, mask=inside, other=0.0).to(tl.float32)
    up_value = tl.load(up + row * up_stride + each, mask=inside, other=0.0).to(tl.float32)
    active = (gate_value * tl.sigmoid(gate_value)).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * WIDTH + each, (active * up_value).to(y.dtype.element_ty), mask=inside)
