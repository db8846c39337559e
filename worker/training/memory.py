"""Passes that fit the memory: the parts of a batch, and what must be put back before a step is repeated."""

import gc
from collections.abc import Mapping
from typing import Protocol

import torch

from worker.templates.token_rows import IGNORED
from worker.training import batches

Batch = Mapping[str, torch.Tensor]


class SpareMemory(Protocol):
    """Memory that makes training faster and nothing else."""

    def release(self) -> bool:
        """Give it back, and take no more; whether there was any."""

    def refresh(self) -> None:
        """What passes compute with lies elsewhere now."""


class RandomState:
    """Where the random numbers of dropout and NEFTune stood when it was made."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Go back to there."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


def split(batch: Batch, rows: int | None) -> list[Batch]:
    """Parts of at most so many rows, in order; None: the batch as it is."""
    if rows is None or count_rows(batch) <= rows:
        return [batch]
    if "sequence_lengths" in batch:
        return list(batches.split_padding_free(batch, rows))
    parts = {name: tensor.split(rows) for name, tensor in batch.items()}
    return [dict(zip(parts, tensors, strict=True)) for tensors in zip(*parts.values(), strict=True)]


def count_rows(batch: Batch) -> int:
    """Sequences in a batch."""
    return len(batch["sequence_lengths"] if "sequence_lengths" in batch else batch["input_ids"])


def count_trained(batch: Batch) -> int:
    """Tokens that the loss counts; the first of a row has nothing before it."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def free_beside_peak(growth: float = 1.0) -> int:
    """Bytes of a GPU that nobody has, beside `growth` times the largest pass of this process so far."""
    free_bytes, _total = torch.cuda.mem_get_info()
    return int(free_bytes + torch.cuda.memory_reserved() - growth * torch.cuda.max_memory_allocated())


def free() -> None:
    """Give back what a failed pass has left; its exception, which held the tensors, must be gone by now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
