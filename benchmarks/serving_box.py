"""Runs a real API process and engine process for measurements: no training, no jobs, no supervisor."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from app.core.engine import workers
from app.core.engine.messages import BaseModelRef
from app.core.engine.workers import WorkerReport
from app.core.settings import EngineWeights, Settings
from app.core.storage import tables
from app.core.storage.database import Database, migrate
from worker.processes.child_process import ChildProcess
from worker.processes.reports import EngineRequest, Listening

_TOKEN = "benchmark"
_START_SECONDS = 300
_MAX_WAITING = 1000
_LEASE_SECONDS = 24 * 3600


@dataclass
class Setup:
    """What is served. Adapters are folders under `artifacts`, and have their folder's name."""

    base: BaseModelRef
    models_folder: Path
    artifacts: Path
    adapters: list[str]
    engine_module: str
    adapter_slots: int = 8
    weights: EngineWeights = EngineWeights.AUTO
    api_command: tuple[str, ...] = ("app",)


class ServingBox:
    """A context manager in which both processes run."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._setup = setup
        self._folder = folder
        self.port = _free_port()

    def __enter__(self) -> "ServingBox":
        self._engine = self._start_engine()
        url = f"http://127.0.0.1:{self._engine_port()}"
        environment = {
            "TUNESMITH_DATA_DIR": str(self._folder / "data"),
            "TUNESMITH_MODELS_DIR": str(self._setup.models_folder),
            "TUNESMITH_PORT": str(self.port),
            "TUNESMITH_LEASE_SECONDS": str(_LEASE_SECONDS),
        }
        self._register(url, Settings(data_dir=self._folder / "data"))
        log = (self._folder / "api.log").open("wb")
        self._api = subprocess.Popen(
            [sys.executable, "-m", *self._setup.api_command],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
        self._wait_for_api()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.terminate()
        self._api.wait()
        self._engine.kill()
        self._engine.close()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer of /v1/completions. Raises HTTPStatusError."""
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        response = httpx.post(url, json=body, timeout=_START_SECONDS, trust_env=False)
        found: dict[str, Any] = response.raise_for_status().json()
        return found

    def processor_seconds(self) -> dict[str, float]:
        """Seconds of processor time that each process has used so far."""
        processes = {"api": psutil.Process(self._api.pid), "engine": psutil.Process(self._engine.pid)}
        return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}

    def _start_engine(self) -> ChildProcess:
        request = EngineRequest(
            host="127.0.0.1",
            port=0,
            token=_TOKEN,
            models_folder=self._setup.models_folder,
            artifacts_url=str(self._setup.artifacts),
            cache_folder=self._folder / "cache",
            adapter_slots=self._setup.adapter_slots,
            weights=self._setup.weights,
            max_waiting=_MAX_WAITING,
        )
        return ChildProcess(self._setup.engine_module, request, self._folder / "engine.log")

    def _engine_port(self) -> int:
        line = self._engine.reports.get(timeout=_START_SECONDS)
        if not line:
            sys.exit(f"The engine did not start:\n{self._engine.log_tail()}")
        return Listening.model_validate_json(line).port

    def _register(self, url: str, settings: Settings) -> None:
        migrate(settings.database_url)
        database = Database(settings.database_url)
        with database.transaction() as session:
            report = WorkerReport("benchmark", ["serve"], engine_url=url, engine_token=_TOKEN)
            workers.heartbeat(session, report)
            for number, name in enumerate(self._setup.adapters):
                session.add(self._adapter(number, name))
        database.close()

    def _adapter(self, number: int, name: str) -> tables.AdapterRow:
        return tables.AdapterRow(
            id=f"ad_{number:016}",
            name=name,
            base_model=self._setup.base.name,
            quantization=self._setup.base.quantization.model_dump(mode="json"),
            size_bytes=1,
            artifact=name,
            created_at=datetime.now(UTC),
        )

    def _wait_for_api(self) -> None:
        for _ in range(_START_SECONDS * 10):
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False)
                return
            except httpx.TransportError:
                if self._api.poll() is not None:
                    break
                time.sleep(0.1)
        sys.exit(f"The API did not start:\n{(self._folder / 'api.log').read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
