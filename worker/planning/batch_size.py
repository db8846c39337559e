"""Batch size, accumulation and checkpointing where a spec has `auto`: the fastest that fit, by the estimate.

The estimate counts on the planned optimizations (optimizations.py), before their trials. Where a trial fails
and the job then needs more memory than there is, the trainer halves the rows of a pass. Reads no file but the
model's config.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from transformers import PreTrainedModel

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec, TrainingSpec
from worker.models import serving_path
from worker.models.device import Device
from worker.models.files.description import MODEL_HINT
from worker.models.files.reading import reading
from worker.planning import automatic_settings
from worker.planning.memory_estimate import BatchShape, Memory, MemorySettings, ModelShape, estimate
from worker.planning.model_shape import attach_and_measure
from worker.planning.optimizations import ModelFamily, describe_family, plan_optimizations
from worker.planning.row_order import order_rows

# The rest is for fragmentation, and for what other programs allocate meanwhile.
USABLE_SHARE = 0.9
DEFAULT_BATCH_SIZE = 4
# A pass of fewer tokens takes as long as one of so many, launching kernels (7B on an H100 or H200).
_MIN_COSTED_TOKENS = 3000
# Epochs differ a little in their largest batch; with many rows one epoch is enough.
_MAX_EPOCHS = 3
_MAX_ROWS = 100_000


@dataclass(frozen=True)
class PlannedJob:
    """What is known about a job before its model is loaded."""

    spec: JobSpec
    device: Device
    shape: ModelShape
    family: ModelFamily
    path: TrainingPath
    serving_obstacles: tuple[str, ...] = ()  # what the paged engine can't compute of model and adapter
    parts: int = 1  # into which its devices divide the base model (planning/strategy.py)

    @classmethod
    def read(cls, spec: JobSpec, device: Device, model: PreTrainedModel, path: TrainingPath) -> "PlannedJob":
        """From the base model on the meta device, which gets the adapter.

        Raises BadTarget, ModelUnreadable.
        """
        with reading(f"The base model {spec.base_model!r}", hint=MODEL_HINT):
            if not any(parameter.numel() for parameter in model.parameters()):
                raise ValueError("by its config.json it has no weights")
            adapted, shape = attach_and_measure(model, spec.lora)
            is_4bit = spec.quantization.load_in_4bit
            obstacles = tuple(serving_path.find_obstacles(adapted, load_in_4bit=is_4bit))
            return cls(spec, device, shape, describe_family(model), path, obstacles)


@dataclass(frozen=True)
class RowLengths:
    """Lengths in tokens of the sequences to train on: rows, rows packed together, or several of each row."""

    longest: int
    shortest: int
    count: int  # of rows
    scored: int  # the largest number of tokens of a row that the loss counts
    each: tuple[tuple[int, int], ...] = ()  # (length, scored tokens); empty: all are as long as the longest
    sequences: int = 1  # of a row

    @classmethod
    def measure(
        cls, lengths: Sequence[int], scored: Sequence[int], *, packed_length: int | None = None
    ) -> "RowLengths":
        """From rows; with `packed_length`, of the sequences of so many tokens that they fill."""
        if packed_length is None:
            each = tuple(zip(lengths, scored, strict=True))
            return cls(max(lengths), min(lengths), len(lengths), max(scored), each)
        filled = min(packed_length, sum(lengths))
        return cls(filled, filled, -(-sum(lengths) // packed_length), min(filled, sum(scored)))

    @classmethod
    def measure_sequences(cls, rows: Sequence[Sequence[tuple[int, int]]]) -> "RowLengths":
        """From rows of equally many sequences each; of every sequence (length, scored tokens)."""
        lengths = [length for row in rows for length, _scored in row]
        each = tuple((sum(one for one, _ in row), sum(scored for _, scored in row)) for row in rows)
        most = max(scored for _length, scored in each)
        return cls(max(lengths), min(lengths), len(rows), most, each, len(rows[0]))


@dataclass(frozen=True)
class ChosenBatch:
    """The settings that a job runs with, and the memory they take."""

    training: TrainingSpec  # without `auto` for batch size and checkpointing
    memory: Memory
    fits: bool


def choose_batch_size(job: PlannedJob, rows: RowLengths, *, free_bytes: int) -> ChosenBatch:
    """Batch size, accumulation and checkpointing: the fastest that fit, else those that take least memory."""
    # Cached, since it does not depend on checkpointing.
    find_batch = cache(partial(find_largest_batch, rows, job.spec.training))
    estimated = []
    for training in _candidates(job.spec.training, is_cuda=job.device.is_cuda, longest=rows.longest):
        settings, is_padding_free = make_memory_settings(job, training)
        size = int(training.per_device_train_batch_size)
        # The rows of a step are grouped by length, those of all devices together.
        passes = training.gradient_accumulation_steps * job.spec.resources.ranks
        batch = find_batch(size, passes, is_padding_free=is_padding_free)
        memory = estimate(job.shape, settings, batch)
        estimated.append(ChosenBatch(training, memory, memory.total <= USABLE_SHARE * free_bytes))
    fitting = [one for one in estimated if one.fits]
    return fitting[0] if fitting else min(estimated, key=lambda one: one.memory.total)


def make_memory_settings(job: PlannedJob, training: TrainingSpec) -> tuple[MemorySettings, bool]:
    """(what the estimate needs to know about a job without `auto`, whether its batches are padding-free)."""
    assert training.gradient_checkpointing != "auto"
    spec = job.spec.model_copy(update={"training": training})
    optimizations = plan_optimizations(spec, job.device, job.family, job.path, divides_base=job.parts > 1)
    settings = MemorySettings(
        precision=automatic_settings.precision(spec, job.device),
        quantization=spec.quantization,
        lora=spec.lora,
        optimizer=training.optim,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation_steps > 1,
        is_cuda=job.device.is_cuda,
        fused_lora=optimizations.fused_lora_dtype is not None,
        explicit_decoder=optimizations.explicit_decoder,
        parts=job.parts,
    )
    return settings, bool(optimizations.varlen_kernels)


def find_largest_batch(
    rows: RowLengths, training: TrainingSpec, size: int, accumulation: int, *, is_padding_free: bool
) -> BatchShape:
    """The largest batch of `size` rows: padded to the longest sequence of all, or padding-free."""
    count = min(size, rows.count)
    sequences = count * rows.sequences
    tokens, scored = sequences * rows.longest, count * rows.scored
    if not is_padding_free:
        has_mask = training.packing or (sequences > 1 and rows.shortest < rows.longest)
        return BatchShape(sequences, rows.longest, scored, has_mask=has_mask)
    if rows.each:
        tokens, scored = max(_count_batches(rows.each, training, size, accumulation))
    return BatchShape(sequences, rows.longest, scored, has_mask=False, padding_free_tokens=tokens)


def _count_batches(
    rows: Sequence[tuple[int, int]], training: TrainingSpec, size: int, accumulation: int
) -> Iterator[tuple[int, int]]:
    """(tokens, scored tokens) of every batch, with the rows in the trainer's order."""
    lengths = [length for length, _scored in rows]
    epochs = math.ceil(training.num_train_epochs) if training.max_steps <= 0 else 1
    group_size = size * accumulation if training.group_by_length else None
    for epoch in range(min(epochs, _MAX_EPOCHS, max(1, _MAX_ROWS // len(rows)))):
        order = order_rows(lengths, seed=training.seed, epoch=epoch, group_size=group_size)
        for start in range(0, len(order), size):
            batch = [rows[index] for index in order[start : start + size]]
            yield sum(length for length, _scored in batch), sum(scored for _length, scored in batch)


def _candidates(training: TrainingSpec, *, is_cuda: bool, longest: int) -> list[TrainingSpec]:
    """Every setting that makes the same optimizer steps, the fastest first."""
    size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    checkpointing = training.gradient_checkpointing
    in_a_step = DEFAULT_BATCH_SIZE * accumulation
    sizes = [n for n in range(in_a_step, 0, -1) if in_a_step % n == 0] if size == "auto" else [size]
    found = []
    for rows in sizes:
        passes = in_a_step // rows if size == "auto" else accumulation
        for recompute in [False, True] if checkpointing == "auto" else [checkpointing]:
            least = _MIN_COSTED_TOKENS if is_cuda else 0
            cost = passes * max(rows * longest, least) * (4 / 3 if recompute else 1)
            changes = {
                "per_device_train_batch_size": rows,
                "gradient_accumulation_steps": passes,
                "gradient_checkpointing": recompute,
            }
            found.append((cost, training.model_copy(update=changes)))
    return [candidate for _cost, candidate in sorted(found, key=lambda pair: pair[0])]
