"""Products with A of several adapters, and what they add when they are multiplied with B in torch."""

import torch

from worker.kernels.pending_lora import PendingLora

RANK = 16


def make_update(
    count: int, widths: list[int], device: str, slots: int = 3
) -> tuple[PendingLora, torch.Tensor]:
    """An update of `count` tokens, the first without an adapter, and what it adds, [count, sum of widths]."""
    torch.manual_seed(1)
    inner_NSMR = torch.randn(count, slots, len(widths), RANK, device=device)
    B_SRO = torch.randn(slots, RANK, sum(widths), device=device) / 10
    slots_N = torch.arange(count, device=device) % (slots + 1)
    added_NO = torch.zeros(count, sum(widths), device=device)
    for token, slot in enumerate(slots_N.tolist()):
        if slot:
            parts = zip(inner_NSMR[token, slot - 1], B_SRO[slot - 1].split(widths, -1), strict=True)
            added_NO[token] = torch.cat([line @ part for line, part in parts])
    return PendingLora(inner_NSMR.flatten(1), slots_N, B_SRO, len(widths)), added_NO
