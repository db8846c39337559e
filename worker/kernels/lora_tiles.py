"""What a token's adapter adds to outputs of linear layers, for the kernels that read these outputs next."""

from typing import Any

import torch
import triton
import triton.language as tl

from worker.kernels.pending_lora import PendingLora

# Up to so many tokens each reads its own adapter's matrix; more should share it (batched_lora.py).
MAX_TOKENS = 32

_ROWS = tl.constexpr(16)


def arguments(given: PendingLora | None, unused: torch.Tensor) -> tuple[Any, ...]:
    """The arguments of a kernel: tensors, then sizes. Without an update, `unused` and zeros."""
    if given is None:
        return unused, unused, unused, 0, 0
    return given.inner_NC, given.slots_N, given.B_SRO, given.inner_NC.stride(0), given.B_SRO.shape[2]


def constants(given: PendingLora | None) -> dict[str, int]:
    """The compile-time arguments of a kernel. `RANK` is 0 without an update."""
    return {"RANK": given.B_SRO.shape[1] if given else 0, "LAYERS": given.layers if given else 1}


@triton.jit
def read(slots, B, output_count, token, outputs, has_output, RANK: tl.constexpr):
    """The slot of a token, and the first rows of its adapter's B. Nothing else is read without an adapter.

    No kernel of a forward pass changes them: they may be read before those before have ended.
    """
    slot = tl.load(slots + token).to(tl.int64)
    return slot, _tile(B, output_count, slot, 0, outputs, has_output, RANK)


@triton.jit
def update(
    inner,
    slot,
    first_tile,
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
    """What the adapter of a token adds to outputs of a layer, in float32, of what `read` has returned."""
    inner += token * inner_stride + ((slot - 1) * LAYERS + layer) * RANK
    summed = tl.zeros([outputs.shape[0]], tl.float32)
    for first in tl.static_range(0, RANK, _ROWS):
        ranks = first + tl.arange(0, _ROWS)
        x_R = tl.load(inner + ranks, mask=ranks < tl.where(slot > 0, RANK, 0), other=0.0).to(tl.float32)
        tile = first_tile if first == 0 else _tile(B, output_count, slot, first, outputs, has_output, RANK)
        summed += tl.sum(x_R[:, None] * tile.to(tl.float32), 0)
    return summed


@triton.jit
def _tile(B, output_count, slot, first, outputs, has_output, RANK: tl.constexpr):
    ranks = first + tl.arange(0, _ROWS)
    at = B + ((slot - 1) * RANK + ranks)[:, None] * output_count + outputs[None, :]
    inside = (ranks < tl.where(slot > 0, RANK, 0))[:, None] & has_output[None, :]
    return tl.load(at, mask=inside, other=0.0)
