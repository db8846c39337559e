"""Batches of token rows: the dataset that TRL takes, packing, padding, and the order of the rows.

L: tokens of a row, or of the rows packed into one sequence. B: sequences in a batch.
"""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from torch.utils.data import Sampler

from worker.formatting import IGNORED, TokenRow
from worker.row_order import order_rows, pack

_FEATURES = Features({"input_ids": ListOf(Value("int32")), "labels": ListOf(Value("int32"))})


class Example(TypedDict, total=False):
    """A sequence as the dataset holds it; `seq_lengths` are the lengths of the rows packed into it."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]


def make_dataset(rows: Sequence[TokenRow], *, packed_length: int | None = None) -> Dataset:
    """Rows as TRL's trainer takes them; with `packed_length`, as many to a sequence as fit."""
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    dataset = Dataset.from_dict(columns, features=_FEATURES)
    return pack(dataset, packed_length) if packed_length else dataset


class Collator:
    """Pads sequences to the longest of the batch. What is padding is known by its place, never by its id."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """A batch on the CPU, all [B, L]: `input_ids`, `labels`, and one of two ways to tell tokens apart.

        Rows of their own get an `attention_mask`. Packed rows get `position_ids` that begin again with each
        row, and no mask: from these transformers builds one that keeps the rows apart (attention.py tries).
        Padding counts as rows of one token.
        """
        batch = {
            "input_ids": _pad([example["input_ids"] for example in examples], self._pad_token_id),
            "labels": _pad([example["labels"] for example in examples], IGNORED),
        }
        if "seq_lengths" in examples[0]:
            positions = [
                [place for length in example["seq_lengths"] for place in range(length)]
                for example in examples
            ]
            return {**batch, "position_ids": _pad(positions, 0)}
        return {**batch, "attention_mask": _pad([[1] * len(example["input_ids"]) for example in examples], 0)}


class EpochSampler(Sampler[int]):
    """The order of the rows: a function of seed and epoch alone, so that a resumed job sees the same one."""

    def __init__(self, lengths: Sequence[int], *, seed: int, group_size: int | None) -> None:
        """With `group_size`, the rows of an optimizer step are of like length."""
        self._lengths = lengths
        self._seed = seed
        self._group_size = group_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Counts from 0; the trainer's data loader says it, also where it skips rows to resume."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(
            order_rows(self._lengths, seed=self._seed, epoch=self._epoch, group_size=self._group_size)
        )


def count_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Tokens of a batch, padding left out."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    positions_BL = batch["position_ids"]
    # Every row has two tokens or more, so what follows the last position above 0 is padding.
    places_L = torch.arange(1, positions_BL.shape[1] + 1, device=positions_BL.device)
    return int((places_L * (positions_BL > 0)).amax(dim=1).sum())


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
