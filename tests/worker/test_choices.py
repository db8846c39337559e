"""What `auto` becomes, for the same job on devices of every size."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from app.core.specs import JobSpec
from tests.factories import make_spec
from worker.choices import Rows, Settled, find_slow_products, precision, quantization, settle
from worker.device import Device
from worker.estimate import ModelShape, Precision
from worker.model_shape import shape_of

GIGABYTE = 10**9
CPU = Device(kind="cpu", name="CPU", memory_bytes=1, supports_bf16=False, torch_version="2.11.0")
AMPERE = Device(kind="cuda", name="A100", memory_bytes=1, supports_bf16=True, torch_version="2.11.0")
TURING = Device(kind="cuda", name="T4", memory_bytes=1, supports_bf16=False, torch_version="2.11.0")
ROWS = Rows(longest=512, shortest=100, count=1000, scored=500)
LONG_ROWS = Rows(longest=2048, shortest=2048, count=1000, scored=2000)


@pytest.fixture(scope="module")
def seven_b() -> ModelShape:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())
    return shape_of(model, make_spec().lora)


def settled(shape: ModelShape, gigabytes: float, rows: Rows = ROWS, **training: Any) -> Settled:
    spec = make_spec(training=training)
    return settle(spec, AMPERE, shape, rows, free_bytes=int(gigabytes * GIGABYTE))


def passes(one: Settled) -> tuple[Any, int, Any]:
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
    one = settled(seven_b, gigabytes)

    assert (one.training.gradient_checkpointing, one.fits) == (expected, fits)


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_asked_for_stays(seven_b: ModelShape, asked: bool) -> None:
    one = settled(seven_b, 1, gradient_checkpointing=asked, per_device_train_batch_size=3)

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
    seven_b: ModelShape, gigabytes: float, rows: Rows, expected: tuple[int, int, bool]
) -> None:
    one = settled(seven_b, gigabytes, rows, per_device_train_batch_size="auto")

    assert passes(one) == expected
    assert one.fits


def test_where_nothing_fits_the_smallest_is_chosen(seven_b: ModelShape) -> None:
    one = settled(seven_b, 1, per_device_train_batch_size="auto", gradient_accumulation_steps=2)

    assert passes(one) == (1, 8, True)
    assert not one.fits


@pytest.mark.parametrize(
    ("device", "fields", "expected"),
    [
        (AMPERE, {}, "bfloat16"),
        (TURING, {}, "float16"),
        (AMPERE, {"training": {"fp16": True}}, "float16"),
        (AMPERE, {"quantization": {"bnb_4bit_compute_dtype": "float32"}}, "float32"),
        (CPU, {"training": {"bf16": True}}, "auto"),
    ],
)
def test_compute_dtype_is_that_of_mixed_precision(
    device: Device, fields: dict[str, Any], expected: str
) -> None:
    assert quantization(make_spec(**fields), device).bnb_4bit_compute_dtype == expected


@pytest.mark.parametrize(
    ("device", "dtype", "is_slow"),
    [
        (CPU, "auto", False),
        (CPU, "bfloat16", True),
        (CPU, "float16", True),
        (CPU.model_copy(update={"supports_bf16": True}), "bfloat16", False),
        (TURING, "bfloat16", False),
    ],
)
def test_products_that_a_cpu_has_no_instructions_for_are_named(
    device: Device, dtype: str, is_slow: bool
) -> None:
    spec = make_spec(quantization={"bnb_4bit_compute_dtype": dtype})

    assert (dtype in (find_slow_products(spec, device) or "")) is is_slow


@pytest.mark.parametrize(
    ("spec", "device", "expected"),
    [
        (make_spec(), CPU, Precision(4, 4, 4)),
        (make_spec(), AMPERE, Precision(2, 2, 2)),
        (make_spec(training={"fp16": True}), AMPERE, Precision(2, 2, 2)),
        (make_spec(training={"fp16": False, "bf16": False}), AMPERE, Precision(2, 4, 2)),
        (
            make_spec(training={"fp16": True}, quantization={"bnb_4bit_compute_dtype": "bfloat16"}),
            AMPERE,
            Precision(2, 2, 4),
        ),
    ],
)
def test_bytes_of_numbers(spec: JobSpec, device: Device, expected: Precision) -> None:
    assert precision(spec, device) == expected


def test_packed_rows_fill_sequences() -> None:
    rows = Rows.measure([30, 50, 40], [10, 20, 30], packed_length=64)

    assert (rows.longest, rows.shortest, rows.count) == (64, 64, 2)
    assert Rows.measure([30], [10], packed_length=64).longest == 30
