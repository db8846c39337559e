"""Counters by which the last of several programs of a kernel knows that it is the last."""

from functools import cache

import torch


@cache
def counters(device: torch.device, count: int) -> torch.Tensor:
    """Int32 [count]. Zeros before and after each launch, so all kernels of a device's stream share them."""
    return torch.zeros(count, dtype=torch.int32, device=device)
