"""Whether each device of a job holds the base model, or they divide it, on devices of every size."""

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from app.core.errors import InvalidRequest
from app.core.settings import TrainingPath
from app.core.specs.resources import Strategy
from tests.factories import make_spec
from tests.worker.llama_family import LLAMA
from tests.worker.planning.test_batch_size import AMPERE, GIGABYTE, ROWS
from worker.planning.batch_size import PlannedJob
from worker.planning.memory_estimate import ModelShape
from worker.planning.model_shape import shape_of
from worker.planning.optimizations import OptimizationPlan, plan_optimizations
from worker.planning.strategy import SharedJob, advise_on_memory, choose_strategy

UNQUANTIZED = {"load_in_4bit": False}


@pytest.fixture(scope="module")
def seven_b() -> ModelShape:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())
    return shape_of(model, make_spec().lora)


def choose(shape: ModelShape, gigabytes: float, gpus: int, strategy: str = "auto", **spec: Any) -> SharedJob:
    resources = {"gpus": gpus, "strategy": strategy}
    job = PlannedJob(make_spec(resources=resources, **spec), AMPERE, shape, LLAMA, TrainingPath.AUTO)
    return choose_strategy(job, ROWS, free_bytes=int(gigabytes * GIGABYTE))


@pytest.mark.parametrize(
    ("gigabytes", "gpus", "strategy", "quantization", "parts", "fits"),
    [
        (80, 2, "auto", UNQUANTIZED, 1, True),
        (12, 2, "auto", UNQUANTIZED, 2, True),  # 13.5 GB of weights
        (12, 1, "auto", UNQUANTIZED, 1, False),
        (12, 2, "ddp", UNQUANTIZED, 1, False),
        (80, 2, "fsdp", UNQUANTIZED, 2, True),
        (80, 1, "fsdp", UNQUANTIZED, 1, True),  # nothing to divide
        (3, 2, "auto", {}, 1, False),  # 4-bit weights can't be divided
        (6, 2, "auto", UNQUANTIZED, 2, False),
        (6, 8, "auto", UNQUANTIZED, 8, True),
    ],
)
def test_the_base_model_is_divided_where_it_must_and_can_be(
    seven_b: ModelShape,
    gigabytes: float,
    gpus: int,
    strategy: str,
    quantization: dict[str, Any],
    parts: int,
    fits: bool,
) -> None:
    shared = choose(seven_b, gigabytes, gpus, strategy, quantization=quantization)

    assert (shared.job.parts, shared.batch.fits) == (parts, fits)
    assert shared.strategy == (None if gpus == 1 else "ddp" if parts == 1 else "fsdp")


@pytest.mark.parametrize(
    ("gigabytes", "strategy", "quantization", "reason"),
    [
        (80, "ddp", {}, "resources.strategy asks for it."),
        (80, "fsdp", UNQUANTIZED, "resources.strategy asks for it."),
        (
            80,
            "auto",
            UNQUANTIZED,
            "the job fits one of them; it needs about .* GB of memory, of 80.0 GB free.",
        ),
        (12, "auto", UNQUANTIZED, "with the whole base model each would need about .*, of 12.0 GB free."),
        (
            3,
            "auto",
            {},
            "of 3.0 GB free, but resources.strategy fsdp divides no base model in 4 bits: .*ddp.",
        ),
    ],
)
def test_the_reason_of_a_strategy_is_said(
    seven_b: ModelShape, gigabytes: float, strategy: str, quantization: dict[str, Any], reason: str
) -> None:
    found = choose(seven_b, gigabytes, 2, strategy, quantization=quantization).reason

    assert re.search(f"{reason}$", found or "")


@pytest.mark.parametrize(
    ("resources", "quantization", "strategy", "advice"),
    [
        ({"gpus": 2}, UNQUANTIZED, "fsdp", "raise resources.gpus: each GPU then holds a smaller part"),
        ({"gpus": 2, "strategy": "ddp"}, UNQUANTIZED, "ddp", "set resources.strategy to fsdp"),
        ({"gpus": 1}, UNQUANTIZED, None, "raise resources.gpus: several GPUs can divide the base model"),
        ({"gpus": 2}, {}, "ddp", "name a smaller base model.$"),
    ],
)
def test_a_job_that_does_not_fit_is_told_whether_more_gpus_help(
    resources: dict[str, Any], quantization: dict[str, Any], strategy: Strategy | None, advice: str
) -> None:
    spec = make_spec(resources=resources, quantization=quantization)

    assert re.search(advice, advise_on_memory(spec, strategy))


def test_the_estimate_divides_the_layers_between_the_devices(seven_b: ModelShape) -> None:
    whole, halves, quarters = (
        choose(seven_b, 80, gpus, "fsdp", quantization=UNQUANTIZED).batch.memory.weights for gpus in (1, 2, 4)
    )

    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) * 2
    assert whole == layers + (2 * 32000 * 4096 + 4096) * 2
    assert whole - halves == layers // 2 - 3 * layers // 32
    assert halves - quarters == layers // 4


def test_a_divided_base_model_is_computed_by_its_own_layers(seven_b: ModelShape) -> None:
    shared = choose(seven_b, 80, 2, "fsdp", quantization=UNQUANTIZED)
    spec = shared.job.spec.model_copy(update={"training": shared.batch.training})

    plan = plan_optimizations(spec, AMPERE, LLAMA, TrainingPath.AUTO, divides_base=True)

    assert plan.left_out == ("all (devices divide the base model)",)
    assert plan == OptimizationPlan(left_out=plan.left_out)


def test_a_spec_that_an_adapter_completed_in_4_bits_is_refused(seven_b: ModelShape) -> None:
    spec = make_spec(resources={"gpus": 2, "strategy": "fsdp"}, quantization=UNQUANTIZED)
    in_4_bits = spec.model_copy(update={"quantization": make_spec().quantization})
    job = PlannedJob(in_4_bits, AMPERE, seven_b, LLAMA, TrainingPath.AUTO)

    with pytest.raises(InvalidRequest, match="bitsandbytes issue 1945"):
        choose_strategy(job, ROWS, free_bytes=80 * GIGABYTE)
