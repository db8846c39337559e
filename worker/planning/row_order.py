"""The order in which a job reads its rows, and how rows are packed, for the trainer and for preflight."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import pack_dataset


def order_rows(lengths: Sequence[int], *, seed: int, epoch: int, group_size: int | None) -> list[int]:
    """Indices of the rows in one epoch's order; `group_size`: so many in turn have similar lengths."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if group_size is None:
        order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
        return order
    grouped: list[int] = get_length_grouped_indices(list(lengths), group_size, generator=generator)
    return grouped


def pack(dataset: Dataset, packed_length: int) -> Dataset:
    """Pack rows into sequences of up to `packed_length` tokens; adds their rows' lengths as `seq_lengths`."""
    return pack_dataset(dataset, packed_length, "bfd")
