"""Which rows of an epoch each rank reads: of N ranks, every Nth of the batches that one process would read.

So a step of N ranks learns from the rows from which one process learns with N times the accumulation. Where
the batches of an epoch are not a multiple of N, the ranks that have none left read a filler: a sequence of
which nothing is learned, so that every rank makes as many passes and no row counts twice (accelerate would
repeat rows from the epoch's beginning).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from worker.templates.token_rows import IGNORED
from worker.training.ranks.world import World

_TOKENS = 2


class RowShare(Sampler[int]):
    """The part of an order of rows that a rank reads. `batch`: rows of a batch; `filler`: its place."""

    def __init__(self, order: Sampler[int], world: World, *, batch: int, filler: int) -> None:
        self._order = order
        self._world = world
        self._batch = batch
        self._filler = filler

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of the order."""
        set_epoch = getattr(self._order, "set_epoch", None)
        if set_epoch:
            set_epoch(epoch)

    def __len__(self) -> int:
        rows = len(self._order)  # type: ignore[arg-type]
        batches = math.ceil(rows / self._batch)
        rounds = math.ceil(batches / self._world.size)
        last = (rounds - 1) * self._world.size + self._world.rank
        in_last = 1 if last >= batches else min(self._batch, rows - last * self._batch)
        return (rounds - 1) * self._batch + in_last

    def __iter__(self) -> Iterator[int]:
        rows = list(self._order)
        starts = range(0, len(rows), self._batch)
        for first in range(0, len(starts), self._world.size):
            place = first + self._world.rank
            if place < len(starts):
                yield from rows[starts[place] : starts[place] + self._batch]
            else:
                yield self._filler


def add_filler(dataset: Dataset, world: World) -> Dataset:
    """The dataset with a filler as its last row; unchanged for a job with one process."""
    if world.is_alone:
        return dataset
    row: dict[str, Any] = {name: [value] for name, value in dataset[0].items()}
    row["input_ids"] = [list(row["input_ids"][0])[:1] * _TOKENS]
    row["labels"] = [[IGNORED] * _TOKENS]
    if "seq_lengths" in row:
        row["seq_lengths"] = [[_TOKENS]]
    return concatenate_datasets([dataset, Dataset.from_dict(row, features=dataset.features)])


def is_filler(batch: Mapping[str, Any]) -> bool:
    """Whether nothing is learned from a batch of the collators."""
    return not len(batch["targets"])
