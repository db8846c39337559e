"""Jobs that start from the adapter of another job."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.core.jobs.events import Metrics
from tests.worker.training.conftest import MakeRequest, run_here
from worker.processes.reports import Outcome, TrainingRequest

SPEC: dict[str, Any] = {
    "training": {"max_steps": 8, "logging_steps": 1, "learning_rate": 1e-2},
    "lora": {"r": 4, "dropout": 0.0},
}


@pytest.fixture
def finished(make_request: MakeRequest) -> TrainingRequest:
    request = make_request("finished", **SPEC)
    assert run_here(request).ended.outcome is Outcome.FINISHED
    return request


def continued(request: TrainingRequest, adapter: Path) -> TrainingRequest:
    return request.model_copy(update={"continue_from": adapter})


def test_a_job_goes_on_where_the_adapter_ended(make_request: MakeRequest, finished: TrainingRequest) -> None:
    fresh = run_here(make_request("fresh", **SPEC)).events(Metrics)

    reports = run_here(continued(make_request("more", **SPEC), finished.output_folder))

    assert reports.ended.outcome is Outcome.FINISHED
    first, *_, last = reports.events(Metrics)
    assert first.loss < min(fresh[0].loss, fresh[4].loss)
    assert last.loss < fresh[-1].loss


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"r": 8}, "it has r 4, the job asks for 8"),
        ({"r": 4, "alpha": 32}, "it has lora_alpha 16, the job asks for 32"),
        ({"r": 4, "target_modules": ["q_proj"]}, "for which the job has no place"),
        ({"r": 4, "target_modules": "all-linear"}, "it has no base_model"),
    ],
)
def test_an_adapter_of_another_shape_is_refused_with_what_differs(
    make_request: MakeRequest, finished: TrainingRequest, lora: dict[str, Any], words: str
) -> None:
    ended = run_here(continued(make_request(lora=lora), finished.output_folder)).ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, "adapter_incompatible")
    assert words in (ended.message or "")
    assert ended.hint


def test_an_adapter_of_a_base_model_that_changed_is_refused(
    make_request: MakeRequest, finished: TrainingRequest
) -> None:
    path = finished.output_folder / "tunesmith.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_weights": "sampled-1:other"}))

    ended = run_here(continued(make_request(**SPEC), finished.output_folder)).ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, "base_model_changed")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_is_damaged_is_refused(
    make_request: MakeRequest, finished: TrainingRequest, name: str
) -> None:
    (finished.output_folder / name).write_text(json.dumps({}) * 9)

    ended = run_here(continued(make_request(**SPEC), finished.output_folder)).ended

    assert ended.code == "adapter_incompatible"
    assert "can't be used" in (ended.message or "")
