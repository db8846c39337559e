"""The real training child before it has its request, and that it trains the same however long it waited."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.training.conftest import MakeRequest, Reports, run_here
from worker.processes.child_process import ChildProcess
from worker.processes.prewarmed import TRAINING_MODULE
from worker.processes.reports import Outcome, Waiting, report_adapter


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[ChildProcess]:
    child = ChildProcess(TRAINING_MODULE, None, tmp_path / "waiting.log")
    first = child.reports.get(timeout=120)
    assert first is not None, child.log_tail()
    assert report_adapter.validate_json(first) == Waiting()
    yield child
    child.kill()
    child.close()


def test_a_process_that_waited_trains_the_same_adapter(
    waiting: ChildProcess, make_request: MakeRequest, tmp_path: Path
) -> None:
    spec = {"training": {"max_steps": 3, "learning_rate": 1e-2}, "lora": {"r": 4, "dropout": 0.1}}
    request, here = make_request("waited", **spec), make_request("here", **spec)
    run_here(here)

    assert waiting.begin(request, tmp_path / "attempt.log")

    reports = Reports()
    while (line := waiting.reports.get(timeout=120)) is not None:
        reports.append(report_adapter.validate_json(line))
    assert reports.ended.outcome is Outcome.FINISHED, waiting.log_tail()
    assert waiting.wait(60) == 0
    weights = [one.output_folder / "adapter_model.safetensors" for one in (request, here)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
