"""A loss that explodes stops the job; one that is only bad or noisy does not."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from app.core.errors import LossExploded
from app.core.events import Checkpoint
from tests.worker.training.conftest import MakeRequest, run_here
from worker.reports import Outcome
from worker.training.counters import Counters
from worker.training.loss_guard import STEPS, StopWhenExploded

VOCABULARY = 1000
GUESSING = math.log(VOCABULARY)


def train(losses: Sequence[float], folder: Path) -> None:
    counters = Counters()
    guard = StopWhenExploded(counters, VOCABULARY)
    args = TrainingArguments(output_dir=str(folder), use_cpu=True)
    for step, loss in enumerate(losses, start=1):
        counters.step_loss = loss
        counters.end_step(1.0)
        guard.on_step_end(args, TrainerState(global_step=step), TrainerControl())


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] + [GUESSING] * 100,
        [0.01] + [5.0] * 100,
        [2.0, *([30.0] * (STEPS - 1) + [3.0]) * 3],
        [GUESSING + 2] * 100,
    ],
    ids=["no better than guessing", "far above its start", "spikes", "an odd base model"],
)
def test_a_loss_that_is_only_bad_or_noisy_goes_on(losses: list[float], tmp_path: Path) -> None:
    train(losses, tmp_path)


def test_a_loss_that_stays_far_above_guessing_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(LossExploded, match=r"above 7\.9 for 20 steps, 30\.0 at step 21; it began at 2\.00"):
        train([2.0] + [30.0] * STEPS, tmp_path)


def test_an_exploded_job_keeps_its_last_checkpoint_from_before(make_request: MakeRequest) -> None:
    training: dict[str, Any] = {"max_steps": 60, "save_steps": 1, "learning_rate": 10.0, "max_grad_norm": 0}
    warm_up = {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5}
    request = make_request(training=training | warm_up)

    reports = run_here(request)

    assert (reports.ended.outcome, reports.ended.code) == (Outcome.FAILED, "loss_exploded")
    assert "learning_rate (it is 10)" in (reports.ended.hint or "")
    newest = reports.events(Checkpoint)[-1].step
    assert newest < 30
    assert (request.job_folder / "checkpoints" / f"checkpoint-{newest}").is_dir()
