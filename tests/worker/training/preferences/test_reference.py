"""The reference model's log-probabilities: of the model as the job begins, computed once, saved."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.core.jobs.events import Log, Metrics
from tests.worker.training.conftest import run_here
from tests.worker.training.preferences.conftest import MakePreferenceRequest, comparisons
from worker.processes.reports import Happened, Outcome, TrainingRequest
from worker.training.preferences import reference

TRAINING: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1}


def saved(request: TrainingRequest) -> dict[str, torch.Tensor]:
    return load_file(request.job_folder / reference.FILE)


def messages(reports: Any) -> str:
    return "\n".join(event.message for event in reports.events(Log))


def test_the_adapter_that_a_job_continues_from_is_its_reference(
    make_preference_request: MakePreferenceRequest,
) -> None:
    lora = {"r": 4, "dropout": 0.1}
    first = make_preference_request("first", training=TRAINING, lora=lora)
    assert run_here(first).ended.outcome is Outcome.FINISHED
    second = make_preference_request("second", training=TRAINING, lora=lora)

    reports = run_here(second.model_copy(update={"continue_from": first.output_folder}))

    assert reports.ended.outcome is Outcome.FINISHED
    points = reports.events(Metrics)
    assert points[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert points[0].reward_margin == pytest.approx(0, abs=1e-5)
    (of_base,), (of_adapter,) = saved(first).values(), saved(second).values()
    # The continued adapter already prefers the chosen answers, which come first of each two.
    gain = of_adapter - of_base
    assert gain[::2].nanmean() > gain[1::2].nanmean()


def test_an_attempt_that_resumes_computes_nothing_again(
    make_preference_request: MakePreferenceRequest,
) -> None:
    request = make_preference_request(training={**TRAINING, "save_steps": 1})
    first = run_here(
        request, stop_when=lambda report: isinstance(report, Happened) and isinstance(report.event, Metrics)
    )
    before = saved(request)

    second = run_here(request)

    assert "Reference log-probabilities of 20 answers are computed." in messages(first)
    assert "Reference log-probabilities" not in messages(second)
    assert all(torch.equal(one, saved(request)[name]) for name, one in before.items())


def test_a_damaged_file_is_computed_again(make_preference_request: MakePreferenceRequest) -> None:
    request = make_preference_request(training=TRAINING)
    request.job_folder.mkdir(parents=True)
    (request.job_folder / reference.FILE).write_bytes(b"half")
    assert run_here(request).ended.outcome is Outcome.FINISHED
    assert len(saved(request)) == 1


def test_only_what_the_steps_read_is_computed(make_preference_request: MakePreferenceRequest) -> None:
    training = {
        **TRAINING,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    request = make_preference_request(rows=comparisons(30), training=training)
    assert run_here(request).ended.outcome is Outcome.FINISHED
    (values,) = saved(request).values()
    assert int(values.isfinite().sum()) == 2 * 2 * 2


def test_a_stop_meanwhile_keeps_what_was_computed(make_preference_request: MakePreferenceRequest) -> None:
    request = make_preference_request(rows=comparisons(8), training=TRAINING)
    whole = make_preference_request("whole", rows=comparisons(8), training=TRAINING)
    run_here(whole)
    (name, values), *_ = saved(whole).items()
    request.job_folder.mkdir(parents=True)
    half = torch.where(torch.arange(len(values)) < 7, values, torch.nan)
    save_file({name: half}, request.job_folder / reference.FILE)

    reports = run_here(request)

    assert f"log-probabilities of {len(values) - 7} answers" in messages(reports)
    torch.testing.assert_close(saved(request)[name], values)


def test_a_stop_before_the_first_step_ends_the_attempt(
    make_preference_request: MakePreferenceRequest, tmp_path: Path
) -> None:
    request = make_preference_request(training=TRAINING)
    reports = run_here(
        request,
        stop_when=lambda report: (
            isinstance(report, Happened)
            and isinstance(report.event, Log)
            and "Reference" in report.event.message
        ),
    )
    assert reports.ended.outcome is Outcome.STOPPED
    assert not reports.events(Metrics)
    assert run_here(request).ended.outcome is Outcome.FINISHED
