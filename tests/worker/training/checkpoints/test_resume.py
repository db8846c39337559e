"""An interrupted job ends as the undisturbed one does: same losses, same weights, to the last bit."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from app.core.jobs.events import Metrics
from tests.worker.training.conftest import MakeRequest, Reports, run_here
from worker.processes.reports import Advanced, Outcome, TrainingRequest

TRAINING: dict[str, Any] = {"num_train_epochs": 3, "logging_steps": 2, "save_steps": 2, "learning_rate": 1e-2}


def at_step(step: int) -> Callable[[BaseModel], bool]:
    return lambda report: isinstance(report, Advanced) and report.step == step


def weights(request: TrainingRequest) -> bytes:
    return (request.output_folder / "adapter_model.safetensors").read_bytes()


def losses(*attempts: Reports) -> dict[int, float]:
    """The loss by step; what an attempt repeats must be what was said before."""
    found: dict[int, float] = {}
    for metrics in [event for reports in attempts for event in reports.events(Metrics)]:
        assert found.setdefault(metrics.step, metrics.loss) == metrics.loss
    return found


@pytest.mark.parametrize(
    ("stop_at", "training"),
    [
        # Five steps are an epoch: the second is cut in the middle, the first at its end.
        (7, {"group_by_length": False}),
        (5, {"group_by_length": True}),
        (4, {"group_by_length": True, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}),
        (7, {"validation_split": 0.3, "eval_steps": 1, "early_stopping_patience": 9, "learning_rate": 0.3}),
        (1, {"packing": True, "max_seq_length": 128, "neftune_noise_alpha": 5.0}),
    ],
    ids=["random", "grouped", "accumulated", "early", "packed"],
)
def test_stopped_job_resumes_exactly(
    make_request: MakeRequest, training: dict[str, Any], stop_at: int
) -> None:
    spec: dict[str, Any] = {
        "training": {**TRAINING, "per_device_train_batch_size": 2, "max_steps": 8, **training},
        "lora": {"r": 4, "dropout": 0.1},
    }
    undisturbed, disturbed = make_request("undisturbed", **spec), make_request("disturbed", **spec)
    whole = run_here(undisturbed)
    first = run_here(disturbed, stop_when=at_step(stop_at))
    second = run_here(disturbed)

    assert (first.ended.outcome, second.ended.outcome) == (Outcome.STOPPED, Outcome.FINISHED)
    assert losses(first, second) == losses(whole)
    assert weights(disturbed) == weights(undisturbed)
    assert second.events(Metrics)[-1].tokens == whole.events(Metrics)[-1].tokens
