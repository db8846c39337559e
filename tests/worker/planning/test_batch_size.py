"""Batch size and checkpointing of the same job on devices of every size."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from app.core.settings import TrainingPath
from tests.factories import make_spec
from tests.worker.llama_family import LLAMA
from worker.models.device import Device
from worker.planning.batch_size import (
    ChosenBatch,
    PlannedJob,
    RowLengths,
    choose_batch_size,
    find_largest_batch,
)
from worker.planning.memory_estimate import ModelShape
from worker.planning.model_shape import shape_of
from worker.training.batches import EpochSampler

GIGABYTE = 10**9
PLAIN = TrainingPath.PLAIN
AMPERE = Device(kind="cuda", name="A100", memory_bytes=1, supports_bf16=True, torch_version="2.11.0")
ROWS = RowLengths(longest=512, shortest=100, count=1000, scored=500)
LONG_ROWS = RowLengths(longest=2048, shortest=2048, count=1000, scored=2000)


@pytest.fixture(scope="module")
def seven_b() -> ModelShape:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())
    return shape_of(model, make_spec().lora)


def chosen(
    shape: ModelShape, gigabytes: float, rows: RowLengths = ROWS, path: TrainingPath = PLAIN, **training: Any
) -> ChosenBatch:
    job = PlannedJob(make_spec(training=training), AMPERE, shape, LLAMA, path)
    return choose_batch_size(job, rows, free_bytes=int(gigabytes * GIGABYTE))


def passes(one: ChosenBatch) -> tuple[Any, int, Any]:
    training = one.training
    return (
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
        training.gradient_checkpointing,
    )


@pytest.mark.parametrize(
    ("gigabytes", "expected", "fits"),
    [(80, False, True), (24, False, True), (16, True, True), (8, True, True), (4, True, False)],
)
def test_checkpointing_is_on_where_it_must_be(
    seven_b: ModelShape, gigabytes: float, expected: bool, fits: bool
) -> None:
    one = chosen(seven_b, gigabytes)

    assert (one.training.gradient_checkpointing, one.fits) == (expected, fits)


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_asked_for_stays(seven_b: ModelShape, asked: bool) -> None:
    one = chosen(seven_b, 1, gradient_checkpointing=asked, per_device_train_batch_size=3)

    assert passes(one) == (3, 1, asked)
    assert not one.fits


@pytest.mark.parametrize(
    ("gigabytes", "rows", "expected"),
    [
        (80, ROWS, (4, 1, False)),
        (16, ROWS, (4, 1, True)),  # one checkpointed pass of few tokens is quicker than two passes
        (80, LONG_ROWS, (4, 1, False)),
        (40, LONG_ROWS, (2, 2, False)),  # two passes of many tokens are quicker than a checkpointed one
        (12, LONG_ROWS, (4, 1, True)),
        (8, LONG_ROWS, (1, 4, True)),
    ],
)
def test_automatic_passes_learn_from_the_same_rows(
    seven_b: ModelShape, gigabytes: float, rows: RowLengths, expected: tuple[int, int, bool]
) -> None:
    one = chosen(seven_b, gigabytes, rows, per_device_train_batch_size="auto")

    assert passes(one) == expected
    assert one.fits


def test_where_nothing_fits_the_smallest_is_chosen(seven_b: ModelShape) -> None:
    one = chosen(seven_b, 1, per_device_train_batch_size="auto", gradient_accumulation_steps=2)

    assert passes(one) == (1, 8, True)
    assert not one.fits


def test_packed_rows_fill_sequences() -> None:
    rows = RowLengths.measure([30, 50, 40], [10, 20, 30], packed_length=64)

    assert (rows.longest, rows.shortest, rows.count) == (64, 64, 2)
    assert RowLengths.measure([30], [10], packed_length=64).longest == 30


@pytest.mark.parametrize(
    ("gigabytes", "path", "expected"),
    [
        (16, TrainingPath.PLAIN, True),
        (16, TrainingPath.AUTO, False),  # optimized it needs 12.5 GB, else 15.7
        (8, TrainingPath.AUTO, True),
    ],
)
def test_optimized_jobs_fit_where_others_do_not(
    seven_b: ModelShape, gigabytes: float, path: TrainingPath, expected: bool
) -> None:
    one = chosen(seven_b, gigabytes, path=path)

    assert (one.training.gradient_checkpointing, one.fits) == (expected, True)


def test_optimizations_that_do_not_apply_are_not_counted_on(seven_b: ModelShape) -> None:
    noisy = chosen(seven_b, 80, path=TrainingPath.AUTO, neftune_noise_alpha=5.0)
    quiet = chosen(seven_b, 80, path=TrainingPath.AUTO)

    assert noisy.memory.activations > quiet.memory.activations  # its batches are padded


def test_the_largest_padding_free_batch_is_one_that_the_trainer_makes() -> None:
    lengths = [length % 97 + 2 for length in range(0, 4000, 7)]
    rows = RowLengths.measure(lengths, [length - 1 for length in lengths])
    training = make_spec(training={"num_train_epochs": 2}).training

    batch = find_largest_batch(rows, training, 4, 1, is_padding_free=True)

    sampler = EpochSampler(lengths, seed=training.seed, group_size=4)
    totals = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        totals += [sum(lengths[at] for at in order[start : start + 4]) for start in range(0, len(order), 4)]
    assert (batch.tokens, batch.scored, batch.has_mask) == (max(totals), max(totals) - 4, False)


def test_rows_are_grouped_by_length_over_all_devices(seven_b: ModelShape) -> None:
    lengths = [length % 97 + 2 for length in range(0, 4000, 7)]
    rows = RowLengths.measure(lengths, [length - 1 for length in lengths])
    peaks = []
    for gpus, accumulation in ((1, 4), (2, 2), (1, 2)):
        spec = make_spec(
            resources={"gpus": gpus},
            training={"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4},
        )
        job = PlannedJob(spec, AMPERE, seven_b, LLAMA, TrainingPath.AUTO)
        peaks.append(choose_batch_size(job, rows, free_bytes=80 * GIGABYTE).memory.activations)

    assert peaks[0] == peaks[1] != peaks[2]


def test_a_padded_batch_is_as_long_as_the_longest_row() -> None:
    rows = RowLengths.measure([30, 50, 40], [10, 20, 30])
    training = make_spec().training

    padded, padding_free = (
        find_largest_batch(rows, training, 2, 1, is_padding_free=is_padding_free)
        for is_padding_free in (False, True)
    )

    assert (padded.tokens, padded.scored, padded.has_mask) == (100, 60, True)
    assert padding_free.tokens <= 90
