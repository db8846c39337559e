"""A whole Tunesmith on this machine: the real API and the real worker, as processes that a test may kill."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.children import find_children
from tests.factories import jsonl
from tests.tiny_model import NAME, make_tiny_model
from tests.waiting import wait_for

Process = subprocess.Popen[bytes]


class Box:
    """Starts and stops the processes, and speaks HTTP to the API."""

    def __init__(self, folder: Path, models_dir: Path, **settings: str) -> None:
        self._folder = folder
        self._processes: list[tuple[str, Process]] = []
        self.port = _free_port()
        self.environment = os.environ | {
            "TUNESMITH_DATA_DIR": str(folder / "data"),
            "TUNESMITH_MODELS_DIR": str(models_dir),
            "TUNESMITH_PORT": str(self.port),
            **{f"TUNESMITH_{name.upper()}": value for name, value in settings.items()},
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def start_api(self) -> Process:
        """Start the API and wait until it answers."""
        process = self._start("app")
        wait_for(self._is_healthy, "the API")
        return process

    def start_missing(self) -> tuple[Process, Process]:
        """Start the API and a worker where none runs, wait until the box is ready. Returns (API, worker)."""
        running = {module: process for module, process in self._processes if process.poll() is None}
        api = running.get("app") or self.start_api()
        worker = running.get("worker") or self._start("worker")
        wait_for(self._is_ready, "the worker", timeout_seconds=120)
        return api, worker

    def start_worker(self, *, wait: bool = True, module: str = "worker") -> Process:
        """Start a worker; by default wait until the whole box is ready."""
        process = self._start(module)
        if wait:
            wait_for(self._is_ready, "the worker", timeout_seconds=120)
        return process

    def upload(self, rows: Iterable[object]) -> str:
        """Upload rows. Returns the dataset's id."""
        files = {"file": ("rows.jsonl", jsonl(rows))}
        return str(self.get_good(self.client.post("/datasets", files=files))["id"])

    def import_adapter(self, archive: bytes, **fields: str) -> dict[str, Any]:
        """Import an adapter of the tiny model.

        Returns it once it is verified or has failed; the error of an upload that is refused, with the state
        "refused".
        """
        sent = self.client.post(
            "/adapters", files={"file": ("adapter.zip", archive)}, data={"base_model": NAME, **fields}
        )
        if sent.is_error:
            assert sent.status_code == 422, sent.text
            return {"state": "refused", **sent.json()}
        adapter_id = sent.json()["id"]

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get_good(self.client.get(f"/adapters/{adapter_id}"))
            return found if found["state"] != "importing" else None

        return wait_for(look, f"the import of {adapter_id}")

    def submit(self, **spec: Any) -> str:
        """Submit a job. Returns its id."""
        return str(self.get_good(self.client.post("/jobs", json=spec))["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as the API shows it."""
        found: dict[str, Any] = self.get_good(self.client.get(f"/jobs/{job_id}"))
        return found

    def wait_for_state(self, job_id: str, *states: str, timeout_seconds: float = 240) -> dict[str, Any]:
        """Wait until the job is in one of the states. Returns the job."""
        return wait_for(
            lambda: found if (found := self.job(job_id))["state"] in states else None,
            f"{job_id} to be {' or '.join(states)}",
            timeout_seconds=timeout_seconds,
            # A request takes the API 5 ms of processor time, which the job's own process needs.
            step_seconds=0.2,
        )

    def wait_for_step(self, job_id: str, step: int = 1) -> None:
        """Wait until the job has done the step."""
        wait_for(
            lambda: (self.job(job_id)["progress"]["step"] or 0) >= step, f"step {step}", timeout_seconds=120
        )

    def wait_for_event(self, job_id: str, kind: str) -> dict[str, Any]:
        """Wait for the first event of a type. Returns it."""
        return wait_for(
            lambda: next(iter(self.events(job_id, kind)), None), f"a {kind} event", timeout_seconds=120
        )

    def events(self, job_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """All events of a job, or those of one type."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.get_good(
                self.client.get(f"/jobs/{job_id}/events", params={"after": after, "limit": 200})
            )
            found += page["data"]
            after = page["next"]
        return [event for event in found if kind in (None, event["type"])]

    def answer(self, question: str, **who: str) -> str:
        """A greedy answer from `adapter` or `base_model`."""
        messages = [{"role": "user", "content": question}]
        body = {"messages": messages, "max_new_tokens": 60, "temperature": 0, **who}
        return str(self.get_good(self.client.post("/generate", json=body))["text"])

    @staticmethod
    def get_good(response: httpx.Response) -> Any:
        """The body of a response that must not be an error."""
        assert not response.is_error, response.text
        return response.json()

    @staticmethod
    def child(process: Process, module: str) -> psutil.Process | None:
        """The process's child that runs a module."""
        return next(iter(find_children(module, of=process.pid)), None)

    def close(self) -> None:
        """Stop all processes."""
        self.client.close()
        for _module, process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for _module, process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self) -> str:
        """The processes' output."""
        return (self._folder / "box.log").read_text()

    def _start(self, module: str) -> Process:
        with (self._folder / "box.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], env=self.environment, stdout=log, stderr=log
            )
        self._processes.append((module, process))
        return process

    def _is_healthy(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def _is_ready(self) -> bool:
        return self.client.get("/ready").status_code == 200


@contextmanager
def running_box(folder: Path, models_dir: Path | None = None, **settings: str) -> Iterator[Box]:
    """A box whose API runs; without `models_dir` it has the tiny model. All of its processes end with it."""
    box = Box(folder, models_dir or make_tiny_model(folder / "models").parent, **settings)
    try:
        box.start_api()
        yield box
    finally:
        box.close()


def server_sent_events(response: httpx.Response) -> Iterator[int]:
    """The ids of an event stream."""
    for line in response.iter_lines():
        if line.startswith("id:"):
            yield int(line.removeprefix("id:"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
