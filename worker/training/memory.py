"""Memory of training: batches split into parts, memory that can be released, random state to restore."""

import gc
from collections.abc import Mapping
from typing import Protocol

import torch

from worker.training import batches

Batch = Mapping[str, torch.Tensor]


class SpareMemory(Protocol):
    """Memory that only makes training faster, and is released when memory runs out."""

    def release(self) -> bool:
        """Free it for the rest of the job. Returns whether there was any."""

    def refresh(self) -> None:
        """React to weights having moved to other addresses."""


def split(batch: Batch, rows: int | None) -> list[Batch]:
    """Split a batch into parts of at most `rows` sequences, in order; None: not split."""
    if rows is None or count_rows(batch) <= rows:
        return [batch]
    if "sequence_lengths" in batch:
        return list(batches.split_padding_free(batch, rows))
    parts = {name: tensor.split(rows) for name, tensor in batch.items() if name not in ("learned", "targets")}
    split_batches = (dict(zip(parts, tensors, strict=True)) for tensors in zip(*parts.values(), strict=True))
    return [batches.add_targets(part) for part in split_batches]


def count_rows(batch: Batch) -> int:
    """Sequences in a batch."""
    return len(batch["sequence_lengths"] if "sequence_lengths" in batch else batch["input_ids"])


def count_trained(batch: Batch) -> int:
    """Tokens that the loss counts; the first token of a sequence is never predicted."""
    return len(batch["targets"])


def free_bytes_at_peak(growth: float = 1.0) -> int:
    """Bytes of the GPU that stay free when this process needs `growth` times its peak so far."""
    free_bytes, _total = torch.cuda.mem_get_info()
    return int(free_bytes + torch.cuda.memory_reserved() - growth * torch.cuda.max_memory_allocated())


def free() -> None:
    """Free the memory of a failed pass. Its exception refers to tensors, so it must be deleted before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
