"""The real API and worker with a prewarmed training process, as by default."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.children import find_children
from tests.end_to_end.box import Box
from tests.tiny_model import NAME, make_tiny_model
from tests.waiting import wait_for
from worker.processes.prewarmed import TRAINING_MODULE

pytestmark = pytest.mark.slow

ROWS = [{"prompt": f"Say {n}", "completion": f"{n} is said"} for n in range(40)]
SPEC: dict[str, Any] = {
    "base_model": NAME,
    "lora": {"r": 4, "target_modules": "all-linear"},
    "training": {"max_steps": 150, "logging_steps": 1, "learning_rate": 1e-3},
}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    models_dir = tmp_path / "models"
    make_tiny_model(models_dir)
    box = Box(tmp_path, models_dir, training_standby="true")
    yield box
    box.close()


def test_a_job_is_trained_by_the_process_that_waited_while_the_one_before_it_was(box: Box) -> None:
    def losses(job_id: str) -> list[float]:
        return [event["data"]["loss"] for event in box.events(job_id, "metrics")]

    def processes() -> list[psutil.Process]:
        return find_children(TRAINING_MODULE, of=worker.pid)

    box.start_api()
    worker = box.start_worker()
    dataset = box.upload(ROWS)
    first, second = (box.submit(**SPEC, dataset=dataset, name=name) for name in ("first", "second"))
    both = wait_for(lambda: found if len(found := processes()) == 2 else None, "a process that waits")
    assert box.job(first)["state"] == "running"
    waited = max(both, key=lambda process: process.create_time())

    job = box.wait_for_state(second, "succeeded", "failed")

    assert job["state"] == "succeeded", job["error"]
    assert losses(second) == losses(first)
    assert not waited.is_running()
    [next_one] = processes()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert not next_one.is_running()
