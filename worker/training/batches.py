"""Batches of token rows: TRL's dataset, packing, collators with and without padding, the order of the rows.

L: tokens of a row, or of the rows packed into one sequence. B: sequences in a batch. T: tokens of a batch.
N: rows in a batch. S: learned tokens of a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypedDict

import torch
from datasets import Dataset, Features, Sequence as ListOf, Value
from torch.nn import functional
from torch.utils.data import Sampler

from worker.planning.row_order import order_rows, pack
from worker.templates.token_rows import IGNORED, TokenRow

# What a sequence may have besides tokens: whether it is a good answer; its log-probability by the reference
# model; in one of several passes over a batch, the gradient of the loss by its log-probability, and its share
# of the loss (preferences/trainer.py).
SEQUENCE_COLUMNS = ("is_desirable", "reference", "factor", "share")

_NOT_FOR_DECODER = {"labels", "learned", "targets", "sequence_lengths", *SEQUENCE_COLUMNS}
_FEATURES = Features({"input_ids": ListOf(Value("int32")), "labels": ListOf(Value("int32"))})


class Example(TypedDict, total=False):
    """A sequence of the dataset. `seq_lengths`: the lengths of the rows packed into it."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]
    is_desirable: bool
    reference: float


def make_dataset(rows: Sequence[TokenRow], *, packed_length: int | None = None) -> Dataset:
    """Rows as a dataset for TRL's trainer; `packed_length`: packed into sequences of up to so many tokens."""
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    dataset = Dataset.from_dict(columns, features=_FEATURES)
    return pack(dataset, packed_length) if packed_length else dataset


class Collator:
    """Pads sequences to the longest of the batch. Padding is known by its place, never by its token id."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """A batch on the CPU, [B, L]: `input_ids`, `labels`, and `attention_mask` or `position_ids`; and
        targets as from `add_targets`.

        Unpacked rows get an `attention_mask`. Packed rows get `position_ids` that begin again with each row,
        from which transformers builds a mask that separates the rows (planning/packing.py checks it); padding
        counts as rows of one token.
        """
        batch = {
            "input_ids": _pad([example["input_ids"] for example in examples], self._pad_token_id),
            "labels": _pad([example["labels"] for example in examples], IGNORED),
            **_sequence_columns(examples),
        }
        if "seq_lengths" in examples[0]:
            positions = [
                [place for length in example["seq_lengths"] for place in range(length)]
                for example in examples
            ]
            return add_targets({**batch, "position_ids": _pad(positions, 0)})
        mask_BL = _pad([[1] * len(example["input_ids"]) for example in examples], 0)
        return add_targets({**batch, "attention_mask": mask_BL})


class PaddingFreeCollator:
    """Concatenates all rows of a batch without padding, for varlen attention."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A batch on the CPU: `input_ids`, `labels`, `position_ids`, [1, T], and where rows begin, in the
        arguments that transformers passes to attention; and targets as from `add_targets`. `sequence_lengths`
        [B] is not for the model.
        """
        lengths = [length for example in examples for length in _row_lengths(example)]
        ids, labels = ([token for one in examples for token in one[key]] for key in ("input_ids", "labels"))
        batch = _padding_free_batch(
            torch.tensor([ids]),
            torch.tensor([labels]),
            lengths,
            [len(example["input_ids"]) for example in examples],
        )
        return {**batch, **_sequence_columns(examples)}


class EpochSampler(Sampler[int]):
    """The order of the rows, from seed and epoch alone, so that a resumed job reads the same order."""

    def __init__(self, lengths: Sequence[int], *, seed: int, group_size: int | None) -> None:
        """`group_size`: so many rows in turn, those of an optimizer step, have similar lengths."""
        self._lengths = lengths
        self._seed = seed
        self._group_size = group_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0; the trainer's data loader calls this, also where it skips rows to resume."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(
            order_rows(self._lengths, seed=self._seed, epoch=self._epoch, group_size=self._group_size)
        )


def count_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Count of a batch's tokens without padding, on the batch's device, so that the host does not wait."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    if "sequence_lengths" in batch:
        return batch["sequence_lengths"].sum()
    positions_BL = batch["position_ids"]
    # Every row has two tokens or more, so what follows the last position above 0 is padding.
    places_L = torch.arange(1, positions_BL.shape[1] + 1, device=positions_BL.device)
    return (places_L * (positions_BL > 0)).amax(dim=1).sum()


def add_targets(batch: dict[str, Any]) -> dict[str, Any]:
    """Add which S tokens are learned: `targets` [S] are those tokens, `learned` [S] the places of the tokens
    before them among all of the batch. On a GPU the host waits for that number, so the collators count."""
    labels_BL = batch["labels"]
    is_learned_BL = functional.pad(labels_BL[:, 1:] != IGNORED, (0, 1)).flatten()
    learned = is_learned_BL.nonzero()[:, 0]
    return {**batch, "learned": learned, "targets": labels_BL.flatten()[learned + 1]}


def decoder_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that is passed to the decoder."""
    return {name: value for name, value in batch.items() if name not in _NOT_FOR_DECODER}


def split_padding_free(batch: Mapping[str, Any], sequences: int) -> list[dict[str, Any]]:
    """Split a padding-free batch into batches of at most so many sequences."""
    sequence_lengths = batch["sequence_lengths"].tolist()
    starts = batch["cu_seq_lens_q"].tolist()
    row_lengths = [end - start for start, end in pairwise(starts)]
    parts, begin = [], 0
    for place in range(0, len(sequence_lengths), sequences):
        lengths = sequence_lengths[place : place + sequences]
        end = begin + sum(lengths)
        rows = [length for start, length in zip(starts, row_lengths, strict=False) if begin <= start < end]
        ids_1T, labels_1T = (batch[key][:, begin:end] for key in ("input_ids", "labels"))
        columns = {name: batch[name][place : place + sequences] for name in SEQUENCE_COLUMNS if name in batch}
        parts.append({**_padding_free_batch(ids_1T, labels_1T, rows, lengths), **columns})
        begin = end
    return parts


def _sequence_columns(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """The columns of SEQUENCE_COLUMNS that the examples have, each [B]."""
    present = [name for name in SEQUENCE_COLUMNS if name in examples[0]]
    return {name: torch.tensor([example[name] for example in examples]) for name in present}  # type: ignore[literal-required]


def _row_lengths(example: Example) -> list[int]:
    return example["seq_lengths"] if "seq_lengths" in example else [len(example["input_ids"])]


def _padding_free_batch(
    ids_1T: torch.Tensor,
    labels_1T: torch.Tensor,
    row_lengths: Sequence[int],
    sequence_lengths: Sequence[int],
) -> dict[str, Any]:
    device = ids_1T.device
    starts = torch.tensor([0, *accumulate(row_lengths)], dtype=torch.int32, device=device)
    positions = [place for length in row_lengths for place in range(length)]
    longest = max(row_lengths)
    batch = {
        "input_ids": ids_1T,
        "labels": labels_1T,
        "position_ids": torch.tensor([positions], device=device),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
        "sequence_lengths": torch.tensor(sequence_lengths, device=device),
    }
    return add_targets(batch)


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
