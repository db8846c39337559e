"""The estimated time of sample answers: none where there are none, twice at least, bounded in between."""

from typing import Any

import pytest
from transformers import LlamaConfig

from app.core.settings import TrainingPath
from app.core.specs.job import TrainingSpec
from benchmarks.estimate_settings import SEVEN_B
from tests.factories import make_spec
from tests.worker.planning.test_time_estimate import H100, build_empty
from worker.models.device import Device
from worker.planning.batch_size import PlannedJob
from worker.planning.sample_answers import MAX_SECONDS, estimate_sample_seconds
from worker.planning.time_estimate import TimeSettings

CPU = Device(
    kind="cpu",
    name="CPU",
    memory_bytes=16 << 30,
    supports_bf16=False,
    torch_version="2.13.0",
    matrix_rate=1e11,
)


def estimate(
    device: Device = H100, *, evaluation_rows: int = 100, step_seconds: float = 1000, **training: Any
) -> float:
    found = TrainingSpec(**training)
    settings = found.model_copy(update={"gradient_checkpointing": False})
    job = PlannedJob.read(make_spec(), device, build_empty(LlamaConfig(**SEVEN_B)), TrainingPath.AUTO)
    return estimate_sample_seconds(
        found,
        job.shape,
        TimeSettings.plan(job, settings),
        evaluation_rows=evaluation_rows,
        steps=100,
        step_seconds=step_seconds,
    )


def test_a_seven_billion_model_says_its_answers_in_seconds() -> None:
    # 64 tokens, once before training and once after it.
    assert 2 < estimate() < 20


@pytest.mark.parametrize(
    "changes", [{"evaluation_rows": 0}, {"sample_prompts": "none"}], ids=["no rows", "turned off"]
)
def test_without_prompts_nothing_takes_time(changes: dict[str, Any]) -> None:
    assert estimate(**changes) == 0


def test_rows_are_sampled_within_a_twentieth_and_named_prompts_at_every_evaluation() -> None:
    ends = estimate()

    rows = estimate(validation_split=0.1, eval_steps=1, step_seconds=100)
    named = estimate(sample_prompts=["a", "b", "c"], eval_steps=1, step_seconds=100)

    assert rows == pytest.approx(ends + 5)
    assert named == pytest.approx(ends * (2 + 99) / 2)


def test_a_slow_device_is_cut_short() -> None:
    assert estimate(CPU, sample_max_new_tokens=512) == 2 * MAX_SECONDS
