"""What a token's adapter adds to outputs of linear layers, for the kernels that read these outputs next."""

from typing import Any

import torch
import triton
import triton.language as tl

from worker.kernels.pending_lora import PendingLora

# Up to so many tokens each reads its own adapter's matrix; more should share it (batched_lora.py).
MAX_TOKENS = 32


def arguments(given: PendingLora | None, unused: torch.Tensor) -> tuple[Any, ...]:
    """The arguments of a kernel: tensors, then sizes. Without an update, `unused` and zeros."""
    if given is None:
        return unused, unused, unused, 0, 0
    return given.inner_NC, given.slots_N, given.B_SRO, given.inner_NC.stride(0), given.B_SRO.shape[2]


def constants(given: PendingLora | None) -> dict[str, int]:
    """The compile-time arguments of a kernel. `RANK` is 0 without an update."""
    return {"RANK": given.B_SRO.shape[1] if given else 0, "LAYERS": given.layers if given else 1}


@triton.jit
def update(
    inner,
    slots,
    B,
    inner_stride,
    output_count,
    token,
    layer,
    outputs,
    has_output,
    RANK: tl.constexpr,
    LAYERS: tl.constexpr,
):
    """What the adapter of a token adds to outputs of a layer, in float32. None is read without an adapter."""
    slot = tl.load(slots + token).to(tl.int64)
    rank = tl.where(slot > 0, RANK, 0)
    inner += token * inner_stride + ((slot - 1) * LAYERS + layer) * RANK
    B += (slot - 1) * RANK * output_count
    summed = tl.zeros([outputs.shape[0]], tl.float32)
    for first in tl.static_range(0, RANK, 16):
        ranks = first + tl.arange(0, 16)
        x_R = tl.load(inner + ranks, mask=ranks < rank, other=0.0).to(tl.float32)
        at = B + ranks[:, None] * output_count + outputs[None, :]
        B_tile = tl.load(at, mask=(ranks < rank)[:, None] & has_output[None, :], other=0.0)
        summed += tl.sum(x_R[:, None] * B_tile.to(tl.float32), 0)
    return summed
