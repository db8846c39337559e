"""What a spec leaves to the device."""

from typing import Any

import pytest

from app.core.specs.job import JobSpec
from tests.factories import make_spec
from worker.models.device import Device
from worker.planning.automatic_settings import find_slow_products, precision, quantization
from worker.planning.memory_estimate import Precision

CPU = Device(kind="cpu", name="CPU", memory_bytes=1, supports_bf16=False, torch_version="2.11.0")
AMPERE = Device(kind="cuda", name="A100", memory_bytes=1, supports_bf16=True, torch_version="2.11.0")
TURING = Device(kind="cuda", name="T4", memory_bytes=1, supports_bf16=False, torch_version="2.11.0")


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
