"""Whole attempts at jobs that learn from preferences: what they report, and that answers move apart."""

import math
from typing import Any

import pytest

from app.core.jobs.events import Evaluation, Metrics
from tests.worker.training.conftest import run_here
from tests.worker.training.preferences.conftest import MakePreferenceRequest, comparisons, labelled
from worker.processes.reports import Outcome

TRAINING: dict[str, Any] = {
    "max_steps": 12,
    "learning_rate": 1e-2,
    "logging_steps": 4,
    "per_device_train_batch_size": 4,
    "validation_split": 0.3,
    "seed": 3,
}


@pytest.mark.parametrize(
    ("method", "rows", "first"),
    [
        ("dpo", comparisons(20), math.log(2)),
        ("kto", labelled(20), 0.5),
        ("kto", comparisons(10), 0.5),
        ("orpo", comparisons(20), None),
    ],
)
def test_preferred_answers_gain_on_rejected_ones(
    make_preference_request: MakePreferenceRequest, method: str, rows: list[Any], first: float | None
) -> None:
    reports = run_here(make_preference_request(method=method, rows=rows, training=TRAINING))

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    points = reports.events(Metrics)
    if first is not None:
        assert points[0].loss == pytest.approx(first, abs=1e-6)
        assert points[0].reward_margin == pytest.approx(0, abs=1e-5)
    assert points[-1].loss < points[0].loss
    assert points[-1].reward_margin > points[0].reward_margin
    assert points[-1].reward_accuracy > 0.9
    assert points[-1].reward_margin == pytest.approx(points[-1].reward_chosen - points[-1].reward_rejected)
    (evaluation,) = reports.events(Evaluation)
    assert evaluation.reward_accuracy == 1
    assert evaluation.reward_margin > 0
    assert evaluation.log_prob_chosen < 0
    assert evaluation.log_prob_rejected < 0
