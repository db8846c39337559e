"""Jobs for the tiny model: requests, and their attempts run in this process or in a child."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from pydantic import BaseModel

from app.core.datasets.inspector import inspect
from app.core.datasets.limits import Limits
from app.core.jobs.events import Evaluation, Metrics
from tests.factories import jsonl, make_spec
from tests.tiny_model import NAME
from worker.processes.child_process import ChildProcess
from worker.processes.prewarmed import LAUNCHER_MODULE, TRAINING_MODULE
from worker.processes.reports import Ended, Happened, Report, TrainingRequest, report_adapter
from worker.training.run import run

TOPICS = ["cancel a job", "read its events", "send a dataset", "see the adapter", "post to the jobs endpoint"]
EventT = TypeVar("EventT")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for each other cost seconds on a busy machine, and gain nothing in a tiny model."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


MakeRequest = Callable[..., TrainingRequest]


@pytest.fixture
def make_request(tmp_path: Path, models_folder: Path) -> MakeRequest:
    """A request with a folder of its own; the spec's parts are keywords, rows default to ten short chats."""

    def make(name: str = "job", *, rows: list[dict[str, Any]] | None = None, **spec: Any) -> TrainingRequest:
        dataset = tmp_path / name / "rows.jsonl"
        dataset.parent.mkdir(parents=True)
        upload = tmp_path / name / "upload"
        upload.write_bytes(jsonl(rows if rows is not None else make_rows(10)))
        found = inspect(upload, dataset, limits=Limits())
        assert found.format is not None
        return TrainingRequest(
            job_id="job_0000000000000000",
            attempt=1,
            spec=make_spec(**{"base_model": NAME, "lora": {"r": 4}, **spec}),
            dataset=dataset,
            dataset_format=found.format,
            dataset_sha256="0" * 64,
            unused_fields=found.unused_fields,
            models_folder=models_folder,
            job_folder=tmp_path / name / "job",
            output_folder=tmp_path / name / "adapter",
        )

    return make


def make_rows(count: int) -> list[dict[str, Any]]:
    """Chats of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"How do I {TOPICS[index % 5]}? " * (1 + index % 3)},
                {"role": "assistant", "content": f"Send POST number {index}."},
            ]
        }
        for index in range(count)
    ]


class Reports(list[Report]):
    """What an attempt reported, in order."""

    @property
    def ended(self) -> Ended:
        assert isinstance(self[-1], Ended), self[-1:]
        return self[-1]

    def events(self, kind: type[EventT]) -> list[EventT]:
        happened = [report.event for report in self if isinstance(report, Happened)]
        return [event for event in happened if isinstance(event, kind)]


def run_here(
    request: TrainingRequest, *, stop_when: Callable[[BaseModel], bool] = lambda report: False
) -> Reports:
    """An attempt in this process; it is asked to stop when a report says so."""
    reports, asked_to_stop = Reports(), threading.Event()

    def send(report: BaseModel) -> None:
        reports.append(report_adapter.validate_json(report.model_dump_json()))
        if stop_when(report):
            asked_to_stop.set()

    send(run(request, send, asked_to_stop))
    return reports


def following(request: TrainingRequest, earlier: Reports) -> TrainingRequest:
    """The request of the next attempt, when the worker has recorded all that was reported."""
    points = [event for event in earlier.events(object) if isinstance(event, Metrics | Evaluation)]
    return request.model_copy(
        update={"attempt": request.attempt + 1, "last_point": points[-1] if points else None}
    )


class Child:
    """An attempt in a child process, as the worker runs it."""

    def __init__(self, request: TrainingRequest, module: str = TRAINING_MODULE) -> None:
        self.process = ChildProcess(module, request, request.job_folder / "attempt.log")
        self.reports = Reports()

    def read(self) -> Iterator[Report]:
        """Reports as they come, until the child closes the pipe."""
        while (line := self.process.reports.get(timeout=120)) is not None:
            self.reports.append(report_adapter.validate_json(line))
            yield self.reports[-1]

    def read_to_end(self) -> Reports:
        for _report in self.read():
            pass
        return self.reports


@pytest.fixture
def start_child() -> Iterator[Callable[[TrainingRequest], Child]]:
    """Children that are gone when the test is over."""
    children: list[Child] = []

    def start(request: TrainingRequest) -> Child:
        children.append(Child(request))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.close()


StartRanks = Callable[..., Child]


@pytest.fixture
def start_ranks() -> Iterator[StartRanks]:
    """Launchers that are gone, with their ranks, when the test is over."""
    children: list[Child] = []

    def start(request: TrainingRequest, module: str = LAUNCHER_MODULE) -> Child:
        children.append(Child(request.model_copy(update={"cpu_ranks": 2}), module))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.close()
