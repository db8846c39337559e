"""The training child as a process of its own: through its pipes, stopped, killed, orphaned."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from app.core.jobs.events import Checkpoint, Metrics
from tests.worker.training.conftest import Child, MakeRequest, following, run_here
from worker.processes.reports import Advanced, Happened, Outcome, TrainingRequest

StartChild = Callable[[TrainingRequest], Child]
# Slow enough for a signal to arrive in mid-training, quick enough for a test.
LONG: dict[str, Any] = {"max_steps": 24, "save_steps": 4, "logging_steps": 1, "learning_rate": 1e-2}
SPEC: dict[str, Any] = {"training": LONG, "lora": {"r": 4, "dropout": 0.1}}


def adapter_bytes(request: TrainingRequest) -> bytes:
    return (request.output_folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def undisturbed(make_request: MakeRequest) -> TrainingRequest:
    request = make_request("undisturbed", **SPEC)
    run_here(request)
    return request


def read_until_checkpoint(child: Child, step: int) -> None:
    for report in child.read():
        if isinstance(report, Happened) and report.event == Checkpoint(step=step):
            return
    raise AssertionError(child.process.log_tail())


def test_a_child_trains_an_adapter_and_exits(make_request: MakeRequest, start_child: StartChild) -> None:
    request = make_request(training={"max_steps": 2, "learning_rate": 1e-2})

    child = start_child(request)
    reports = child.read_to_end()

    assert reports.ended.outcome is Outcome.FINISHED, child.process.log_tail()
    assert child.process.wait(60) == 0
    assert (request.output_folder / "adapter_model.safetensors").is_file()
    assert "Traceback" not in child.process.log_tail()


@pytest.mark.slow
def test_a_child_that_is_asked_to_stop_resumes_exactly(
    make_request: MakeRequest, start_child: StartChild, undisturbed: TrainingRequest
) -> None:
    request = make_request(**SPEC)
    child = start_child(request)
    read_until_checkpoint(child, 4)
    child.process.ask_to_stop()

    reports = child.read_to_end()

    assert reports.ended.outcome is Outcome.STOPPED
    assert child.process.wait(60) == 0
    last_step = max(report.step or 0 for report in reports if isinstance(report, Advanced))
    assert reports.events(Checkpoint)[-1].step == last_step < 24
    assert run_here(request).ended.outcome is Outcome.FINISHED
    assert adapter_bytes(request) == adapter_bytes(undisturbed)


def test_a_child_that_is_killed_resumes_exactly(
    make_request: MakeRequest, start_child: StartChild, undisturbed: TrainingRequest
) -> None:
    request = make_request(**SPEC)
    child = start_child(request)
    read_until_checkpoint(child, 8)
    os.kill(child.process.pid, signal.SIGKILL)
    child.read_to_end()
    assert child.process.wait(60) == -signal.SIGKILL

    reports = run_here(following(request, child.reports))

    assert reports.ended.outcome is Outcome.FINISHED
    assert reports.events(Metrics)[0].step > 8
    assert adapter_bytes(request) == adapter_bytes(undisturbed)


def test_a_child_dies_with_its_worker(make_request: MakeRequest, start_child: StartChild) -> None:
    child = start_child(make_request(**SPEC))
    read_until_checkpoint(child, 4)

    child.process.close()

    assert child.process.wait(60) == 1


def test_a_failure_reaches_the_worker_and_its_traceback_the_log(
    make_request: MakeRequest, start_child: StartChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    child = start_child(make_request(base_model="owner/missing"))

    ended = child.read_to_end().ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, "hub_unreachable")
    assert child.process.wait(60) == 0
    assert "Traceback" in child.process.log_tail()
