"""Passes and checkpointing where a spec leaves them to `auto`: the fastest that fit, by the memory estimate.

The estimate is of the ways of computing that the job will take (fast_ways.py), as far as that can be known
before they are tried. Where a trial fails and the plain way needs more memory than there is, the trainer
halves the rows of a pass as soon as one does not fit. No files but a model's config.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec, TrainingSpec
from worker.models.device import Device
from worker.planning import automatic_settings
from worker.planning.memory_estimate import Batch, FastWays, Memory, ModelShape, Plan, estimate
from worker.planning.model_shape import read_model, shape_of
from worker.planning.optimizations import Family, choose, describe_family
from worker.planning.row_order import order_rows

# The rest is for fragments, and for what other programs take meanwhile.
USABLE_SHARE = 0.9
DEFAULT_BATCH_SIZE = 4
# A pass takes as long as with so many tokens at least: it is launching kernels (7B on an H100 or H200).
_TOKENS_OF_LAUNCHES = 3000
# Epochs differ a little in their largest batch. Of many rows one shows it.
_MOST_EPOCHS = 3
_MOST_ROWS = 100_000


@dataclass(frozen=True)
class Job:
    """What is known of a job before anything is loaded."""

    spec: JobSpec
    device: Device
    shape: ModelShape
    family: Family
    path: TrainingPath

    @classmethod
    def read(cls, spec: JobSpec, device: Device, folder: Path, path: TrainingPath) -> "Job":
        """From the base model's config in a folder. Raises ModelUnreadable, BadTarget."""
        model = read_model(folder)
        return cls(spec, device, shape_of(model, spec.lora), describe_family(model), path)


@dataclass(frozen=True)
class Rows:
    """The lengths of the sequences to train on: rows, or rows packed. `scored`: tokens the loss counts."""

    longest: int
    shortest: int
    count: int
    scored: int  # of the sequence with the most
    each: tuple[tuple[int, int], ...] = ()  # length and scored tokens; empty: all are as the longest

    @classmethod
    def measure(
        cls, lengths: Sequence[int], scored: Sequence[int], *, packed_length: int | None = None
    ) -> "Rows":
        """Of rows; with `packed_length`, of the sequences they fill."""
        if packed_length is None:
            each = tuple(zip(lengths, scored, strict=True))
            return cls(max(lengths), min(lengths), len(lengths), max(scored), each)
        filled = min(packed_length, sum(lengths))
        return cls(filled, filled, -(-sum(lengths) // packed_length), min(filled, sum(scored)))


@dataclass(frozen=True)
class Settled:
    """What a job runs with, and the memory that takes."""

    training: TrainingSpec  # without any `auto` in its passes
    memory: Memory
    fits: bool


def settle(job: Job, rows: Rows, *, free_bytes: int) -> Settled:
    """Passes and checkpointing: the fastest that fit, else the smallest."""
    find_batch = cache(partial(find_largest, rows, job.spec.training))  # the same, checkpointed or not
    settled = []
    for training in _candidates(job.spec.training, is_cuda=job.device.is_cuda, longest=rows.longest):
        plan, is_joined = make_plan(job, training)
        size = int(training.per_device_train_batch_size)
        batch = find_batch(size, training.gradient_accumulation_steps, is_joined=is_joined)
        memory = estimate(job.shape, plan, batch)
        settled.append(Settled(training, memory, memory.total <= USABLE_SHARE * free_bytes))
    fitting = [one for one in settled if one.fits]
    return fitting[0] if fitting else min(settled, key=lambda one: one.memory.total)


def make_plan(job: Job, training: TrainingSpec) -> tuple[Plan, bool]:
    """What the estimate asks of a job once its passes are settled, and whether batches have no padding."""
    assert training.gradient_checkpointing != "auto"
    spec = job.spec.model_copy(update={"training": training})
    choice = choose(spec, job.device, job.family, job.path)
    plan = Plan(
        precision=automatic_settings.precision(spec, job.device),
        quantization=spec.quantization,
        lora=spec.lora,
        optimizer=training.optim,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation_steps > 1,
        is_cuda=job.device.is_cuda,
        fast=FastWays(linears=choice.linears is not None, liger=choice.liger),
    )
    return plan, bool(choice.attention)


def find_largest(
    rows: Rows, training: TrainingSpec, size: int, accumulation: int, *, is_joined: bool
) -> Batch:
    """The largest batch of so many sequences: padded to the longest of all, or joined."""
    sequences = min(size, rows.count)
    tokens, scored = sequences * rows.longest, sequences * rows.scored
    if not is_joined:
        has_mask = training.packing or (sequences > 1 and rows.shortest < rows.longest)
        return Batch(sequences, rows.longest, scored, has_mask=has_mask)
    if rows.each:
        tokens, scored = max(_count_batches(rows.each, training, size, accumulation))
    return Batch(sequences, rows.longest, scored, has_mask=False, joined_tokens=tokens)


def _count_batches(
    rows: Sequence[tuple[int, int]], training: TrainingSpec, size: int, accumulation: int
) -> Iterator[tuple[int, int]]:
    """Tokens and scored tokens of every batch, in the order that the trainer reads the rows in."""
    lengths = [length for length, _scored in rows]
    epochs = math.ceil(training.num_train_epochs) if training.max_steps <= 0 else 1
    group_size = size * accumulation if training.group_by_length else None
    for epoch in range(min(epochs, _MOST_EPOCHS, max(1, _MOST_ROWS // len(rows)))):
        order = order_rows(lengths, seed=training.seed, epoch=epoch, group_size=group_size)
        for start in range(0, len(order), size):
            batch = [rows[index] for index in order[start : start + size]]
            yield sum(length for length, _scored in batch), sum(scored for _length, scored in batch)


def _candidates(training: TrainingSpec, *, is_cuda: bool, longest: int) -> list[TrainingSpec]:
    """Every way to run the same optimizer steps, the fastest first."""
    size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    checkpointing = training.gradient_checkpointing
    in_a_step = DEFAULT_BATCH_SIZE * accumulation
    sizes = [n for n in range(in_a_step, 0, -1) if in_a_step % n == 0] if size == "auto" else [size]
    found = []
    for rows in sizes:
        passes = in_a_step // rows if size == "auto" else accumulation
        for recompute in [False, True] if checkpointing == "auto" else [checkpointing]:
            least = _TOKENS_OF_LAUNCHES if is_cuda else 0
            cost = passes * max(rows * longest, least) * (4 / 3 if recompute else 1)
            changes = {
                "per_device_train_batch_size": rows,
                "gradient_accumulation_steps": passes,
                "gradient_checkpointing": recompute,
            }
            found.append((cost, training.model_copy(update=changes)))
    return [candidate for _cost, candidate in sorted(found, key=lambda pair: pair[0])]
