"""The estimated time of a job is within a factor of two of what was recorded, on a device of known speed."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3MoeConfig

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec, LoraSpec
from benchmarks.estimate_settings import SEVEN_B
from benchmarks.training_setups import ROWS, Setup, draw_rows
from tests.factories import make_spec
from worker.models.device import Device, find_device, measure_matrix_rate
from worker.planning.batch_size import PlannedJob
from worker.planning.model_shape import shape_of
from worker.planning.time_estimate import TimeSettings, count_operations, estimate_seconds
from worker.preflight.report import guess_time
from worker.preflight.schedule import make_schedule, pack_lengths

RESULTS = Path("benchmarks/results")
FILES = ("training-h100.json", "training-h100-later.json")
H100 = Device(
    kind="cuda",
    name="H100",
    memory_bytes=80 << 30,
    supports_bf16=True,
    torch_version="2.11.0",
    matrix_rate=7.2e14,
)


def build_empty(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@lru_cache
def row_lengths() -> list[int]:
    return [len(row) for row in draw_rows(ROWS, 32000)]


def read_recorded() -> list[Any]:
    """(rate of the device, a line of the results) for every training setup."""
    found = []
    for name in FILES:
        results = json.loads((RESULTS / name).read_text())
        rate = results["large_products"]["tflops_at_first"] * 1e12
        found += [pytest.param(rate, line, id=f"{line['name']}, {name}") for line in results["measured"]]
    return found


def guess(spec: JobSpec, rate: float, *, is_plain: bool = False) -> tuple[float, float]:
    """(seconds, tokens per second) of a 7B model on the rows of the benchmark."""
    device = H100.model_copy(update={"matrix_rate": rate})
    path = TrainingPath.PLAIN if is_plain else TrainingPath.AUTO
    job = PlannedJob.read(spec, device, build_empty(LlamaConfig(**SEVEN_B)), path)
    training, lengths = spec.training, row_lengths()
    assert training.max_seq_length
    packed = pack_lengths(lengths, training.max_seq_length) if training.packing else lengths
    found = guess_time(make_schedule(packed, training), lengths, 1.0, job, training)
    return found.seconds, found.tokens_per_second


@pytest.mark.parametrize(("rate", "recorded"), read_recorded())
def test_the_speed_is_within_a_factor_of_two_of_every_recorded_setup(
    rate: float, recorded: dict[str, Any]
) -> None:
    setup = Setup(**{**recorded["setup"], "steps": 10_000})

    _seconds, speed = guess(
        JobSpec.model_validate(setup.spec("llama-7b")), rate, is_plain=setup.code != "auto"
    )

    assert 0.5 < speed / recorded["tokens_per_second"] < 2


@pytest.mark.parametrize("name", ["recipe", "recipe, alone"])
def test_the_first_steps_without_cuda_graphs_are_counted(name: str) -> None:
    results = json.loads((RESULTS / FILES[0]).read_text())
    recorded = next(line for line in results["measured"] if line["name"] == name)

    seconds, _speed = guess(
        JobSpec.model_validate(Setup(**recorded["setup"]).spec("llama-7b")), H100.matrix_rate or 0
    )

    assert 0.5 < seconds / (sum(recorded["ms_of_steps"]) / 1e3) < 2


@pytest.mark.parametrize("run", json.loads((RESULTS / "recipe-7b-h200.json").read_text())["runs"])
def test_a_short_job_on_an_h200_is_within_a_factor_of_two(run: dict[str, Any]) -> None:
    """An H200 multiplies as fast as an H100."""
    spec = JobSpec.model_validate(run["spec"])
    training = spec.training.model_copy(
        update={"max_steps": run["steps"], "max_seq_length": 2048, "gradient_checkpointing": False}
    )

    _seconds, speed = guess(spec.model_copy(update={"training": training}), H100.matrix_rate or 0)

    assert 0.5 < speed / run["tokens_per_second"] < 2


def test_the_time_falls_with_the_rate_of_the_device() -> None:
    spec = JobSpec.model_validate(Setup("packed", packing=True, r=16, steps=1000).spec("llama-7b"))

    fast, slow = guess(spec, 7.2e14)[0], guess(spec, 0.72e14)[0]

    assert slow == pytest.approx(10 * fast, rel=0.05)


def test_long_rows_cost_more_for_their_attention() -> None:
    shape = shape_of(build_empty(LlamaConfig(**SEVEN_B)), LoraSpec())

    short, long = (count_operations(shape, checkpointing=False, row_length=length) for length in (0, 32_768))

    # Forward 2 * L / 2 * 2 * width for each layer, and 2.5 times that backward.
    assert long - short == 7 * 32_768 * 4096 * 32
    assert short == pytest.approx(4 * 6.607e9, rel=0.02)


def test_of_experts_only_those_of_a_token_count() -> None:
    sizes = {"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "hidden_size": 128}
    others = {"vocab_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    empty = build_empty(Qwen3MoeConfig(**sizes, **others, head_dim=32))
    weights = sum(parameter.numel() for parameter in empty.parameters())

    operations = count_operations(shape_of(empty, LoraSpec(r=1)), checkpointing=False, row_length=0)

    assert operations < 4 * weights / 8


def test_an_unmeasured_device_has_an_estimate() -> None:
    model = build_empty(LlamaConfig(**{**SEVEN_B, "num_hidden_layers": 2}))
    job = PlannedJob.read(make_spec(base_model="llama"), find_device(), model, TrainingPath.AUTO)
    training = job.spec.training.model_copy(
        update={"per_device_train_batch_size": 1, "gradient_checkpointing": True}
    )

    assert estimate_seconds(job.shape, TimeSettings.plan(job, training), [[8], [9]], steps=2) > 0


def test_the_rate_of_this_device_is_measured() -> None:
    rate = measure_matrix_rate(find_device())

    assert rate
    assert 1e8 < rate < 1e16
