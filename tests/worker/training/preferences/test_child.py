"""A job that learns from preferences as a process of its own, killed in mid-training."""

from collections.abc import Callable
from typing import Any

import pytest

from app.core.jobs.events import Checkpoint, Evaluation, Metrics
from tests.worker.training.conftest import Child, following, run_here
from tests.worker.training.preferences.conftest import MakePreferenceRequest, labelled
from worker.processes.reports import Happened, TrainingRequest

SPEC: dict[str, Any] = {
    "training": {
        "max_steps": 16,
        "save_steps": 4,
        "logging_steps": 3,
        "learning_rate": 1e-2,
        "validation_split": 0.2,
        "eval_steps": 5,
    }
}


def weights(request: TrainingRequest) -> bytes:
    return (request.output_folder / "adapter_model.safetensors").read_bytes()


def curve(reports: Any) -> dict[tuple[str, int], tuple[float | None, ...]]:
    points = [one for one in reports.events(object) if isinstance(one, Metrics | Evaluation)]
    return {
        (one.type, one.step): (one.loss, one.reward_chosen, one.reward_rejected, one.reward_accuracy)
        for one in points
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [{"method": "dpo"}, {"method": "kto", "rows": labelled(12)}], ids=lambda spec: spec["method"]
)
def test_a_killed_child_is_followed_by_one_that_ends_with_the_same_weights_and_curve(
    make_preference_request: MakePreferenceRequest,
    start_child: Callable[[TrainingRequest], Child],
    spec: dict[str, Any],
) -> None:
    undisturbed = make_preference_request("undisturbed", **SPEC, **spec)
    expected = curve(run_here(undisturbed))
    request = make_preference_request(**SPEC, **spec)
    first = start_child(request)
    for report in first.read():
        if isinstance(report, Happened) and report.event == Checkpoint(step=8):
            break
    first.process.kill()

    second = start_child(following(request, first.reports))
    reports = second.read_to_end()

    assert weights(request) == weights(undisturbed), second.process.log_tail()
    assert {**curve(first.reports), **curve(reports)} == expected
    assert "Reference log-probabilities" not in second.process.log_tail()
