"""The trainer's batches and optimizer steps, computed from row lengths. Knows no model and no tokenizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, Features, Sequence as ListOf, Value

from app.core.specs.job import TrainingSpec
from worker.planning.row_order import order_rows, pack

_LENGTHS_ONLY = Features({"input_ids": ListOf(Value("int8"))})


@dataclass(frozen=True)
class Schedule:
    """Steps and padding of a job."""

    optimizer_steps: int
    epochs: float  # passes over the rows in these steps
    padding_share: float
    batches: tuple[tuple[int, ...], ...]  # lengths of the sequences of each batch of the first epoch


def make_schedule(
    lengths: Sequence[int],
    training: TrainingSpec,
    *,
    sample_of: float = 1.0,
    gpus: int = 1,
    sequences: Sequence[Sequence[int]] | None = None,
) -> Schedule:
    """The schedule for rows of these lengths; they are a sample of `sample_of` times as many.

    `gpus`: devices that compute a step together, each its own batches.

    `sequences`: the lengths of the sequences of each row, where a row is more than one.
    """
    size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    assert size != "auto"
    group_size = size * accumulation * gpus if training.group_by_length else None
    order = order_rows(lengths, seed=training.seed, epoch=0, group_size=group_size)
    in_order = [sequences[index] if sequences else (lengths[index],) for index in order]
    batches = tuple(
        tuple(length for row in in_order[start : start + size] for length in row)
        for start in range(0, len(order), size)
    )
    computed = sum(len(batch) * max(batch) for batch in batches)
    passes = math.ceil(round(len(lengths) * sample_of) / size)
    steps_in_epoch = max(1, math.ceil(passes / (accumulation * gpus)))
    steps = (
        training.max_steps
        if training.max_steps > 0
        else math.ceil(training.num_train_epochs * steps_in_epoch)
    )
    return Schedule(steps, steps / steps_in_epoch, 1 - sum(lengths) / computed, batches)


def pack_lengths(lengths: Sequence[int], packed_length: int) -> list[int]:
    """Pack rows of these lengths. Returns the lengths of the packed sequences."""
    columns = {"input_ids": [[0] * length for length in lengths]}
    packed = pack(Dataset.from_dict(columns, features=_LENGTHS_ONLY), packed_length)
    return [sum(parts) for parts in packed["seq_lengths"]]
