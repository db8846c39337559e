"""A loss that explodes stops the job; one that is only bad or noisy does not."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from app.core.errors.jobs import LossExploded
from app.core.jobs.events import Checkpoint
from tests.worker.training.conftest import MakeRequest, run_here
from worker.processes.reports import Outcome
from worker.training.progress.counters import Counters, StepValues
from worker.training.progress.loss_guard import STEPS, LossGuard

VOCABULARY = 1000
GUESSING = math.log(VOCABULARY)


def train(losses: Sequence[float]) -> None:
    counters = Counters()
    guard = LossGuard(counters, VOCABULARY)
    for step, loss in enumerate(losses, start=1):
        counters.end_step(StepValues(loss, 10), 1.0)
        guard.check(step, len(losses), 1e-4)


@pytest.mark.parametrize(
    "losses",
    [
        [0.01] + [3.0] * 100,
        [2.4] + [GUESSING] * 100,
        [2.0, *([30.0] * (STEPS - 1) + [3.0]) * 3],
        [GUESSING + 2] * 100,
    ],
    ids=["low all the same", "not three times its start", "spikes", "an odd base model"],
)
def test_a_loss_that_is_only_bad_or_noisy_goes_on(losses: list[float]) -> None:
    train(losses)


def test_a_loss_that_stays_far_above_its_start_stops_the_job() -> None:
    with pytest.raises(LossExploded, match=r"above 6\.0 for 20 steps, 30\.0 at step 21; it began at 2\.00"):
        train([2.0] + [30.0] * STEPS)


def test_an_exploded_job_keeps_its_last_checkpoint_from_before(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SFTTrainer.training_step

    def explode(self: SFTTrainer, *args: Any) -> torch.Tensor:
        loss: torch.Tensor = step(self, *args)
        return loss * 10 if self.state.global_step >= 5 else loss

    monkeypatch.setattr(SFTTrainer, "training_step", explode)
    request = make_request(training={"max_steps": 60, "save_steps": 1, "learning_rate": 1e-2})

    reports = run_here(request)

    assert (reports.ended.outcome, reports.ended.code) == (Outcome.FAILED, "loss_exploded")
    assert "learning_rate (it is 0.01)" in (reports.ended.hint or "")
    assert reports.events(Checkpoint)[-1].step == 5
    assert (request.job_folder / "checkpoints" / "checkpoint-5").is_dir()
