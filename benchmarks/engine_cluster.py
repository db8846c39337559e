"""An API and engines, each on processor cores or on a GPU of its own, for benchmarks/engines.py."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil

from app.core.adapters import records as adapter_records
from app.core.engine import workers
from app.core.engine.messages import AdapterRef, BaseModelRef
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage import tables
from app.core.storage.database import Database, migrate

PORT = 8399
_START_SECONDS = 300.0
_TAIL_CHARACTERS = 3000
_QUANTIZATION = QuantizationSpec(load_in_4bit=False)


@dataclass(frozen=True)
class Model:
    """What clients ask for: an adapter, or the base model itself. `name` is its name in the API."""

    name: str
    base: BaseModelRef
    adapter: AdapterRef | None


@dataclass(frozen=True)
class Engine:
    """The address of an engine, its process, and the name of its device."""

    url: str
    token: str
    pid: int
    device: str


class Cluster:
    """The processes of a run, in a folder. `adapters` are folders in PEFT's format."""

    def __init__(self, folder: Path, model: Path, adapters: list[Path]) -> None:
        self._folder = folder
        settings = Settings(data_dir=folder / "data")
        migrate(settings.database_url)
        self._database = Database(settings.database_url)
        base = BaseModelRef(name=model.name, quantization=_QUANTIZATION)
        with self._database.transaction() as session:
            rows = [_adapter_row(number, one.name, model.name) for number, one in enumerate(adapters)]
            session.add_all(rows)
            found = [Model(row.name, *adapter_records.references(row)) for row in rows]
        self.models = found or [Model(model.name, base, None)]
        self._environment = os.environ | {
            "TUNESMITH_DATABASE_URL": settings.database_url,
            "TUNESMITH_ARTIFACTS_URL": str(adapters[0].parent if adapters else folder),
            "TUNESMITH_MODELS_DIR": str(model.parent),
            "TUNESMITH_PORT": str(PORT),
            "TUNESMITH_TRAINING_STANDBY": "false",
        }

    @contextmanager
    def running(self, engines: int, cores: int | None) -> Iterator[tuple[int, list[Engine]]]:
        """Run the API, and so many engines on `cores` cores each; None: on a GPU each, all of one worker.

        Yields the id of the API's process, and the engines.
        """
        serve = ["--role", "serve"]
        with ExitStack() as stack:
            api = stack.enter_context(self._process("app", [], "api"))
            if cores is None:
                gpus = {"TUNESMITH_SERVE_GPUS": str(engines)}
                stack.enter_context(self._process("worker", serve, "worker", changes=gpus))
            for number in range(engines if cores else 0):
                own = list(range(number * cores, (number + 1) * cores))
                stack.enter_context(self._process("worker", serve, f"worker-{number}", own))
            yield api, self._wait_until_ready(engines)

    def log_tails(self) -> str:
        """Returns the ends of all processes' logs."""
        logs = sorted(self._folder.rglob("*.log"))
        return "\n".join(f"{log.relative_to(self._folder)}:\n{_read_tail(log)}" for log in logs)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @contextmanager
    def _process(
        self,
        module: str,
        arguments: list[str],
        name: str,
        cores: list[int] | None = None,
        changes: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[int]:
        environment = self._environment | {"TUNESMITH_DATA_DIR": str(self._folder / name), **changes}
        if cores:
            environment["OMP_NUM_THREADS"] = str(len(cores))
        with (self._folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        if cores:
            # Before it starts its engine, which inherits them.
            psutil.Process(process.pid).cpu_affinity(cores)
        try:
            yield process.pid
        finally:
            if process.poll() is not None:
                with (self._folder / f"{name}.log").open("a") as log_of_end:
                    log_of_end.write(f"The process has ended by itself, with status {process.returncode}.\n")
            process.terminate()
            process.wait()

    def _wait_until_ready(self, engines: int) -> list[Engine]:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            with self._database.snapshot() as session:
                rows = workers.find_alive(session, lease_seconds=60, role="serve")
                found = [
                    Engine(
                        row.engine_url,
                        row.engine_token or "",
                        _find_process(row.id, row.engine_url),
                        str((row.device or {}).get("name")),
                    )
                    for row in rows
                    if row.engine_url and row.engine_state
                ]
            if len(found) == engines and _is_up():
                return found
            time.sleep(0.2)
        sys.exit(f"The engines did not start.\n{self.log_tails()}")


def _adapter_row(number: int, name: str, base_model: str) -> tables.AdapterRow:
    return tables.AdapterRow(
        id=f"ad_{number:016}",
        name=name,
        base_model=base_model,
        quantization=_QUANTIZATION.model_dump(mode="json"),
        size_bytes=1,
        artifact=name,
        created_at=datetime.now(UTC),
    )


def _read_tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL_CHARACTERS:]


def _find_process(worker_id: str, engine_url: str) -> int:
    """The worker's child that listens at the engine's address."""
    worker, port = psutil.Process(int(worker_id.split("-")[-2])), httpx.URL(engine_url).port
    return next(
        child.pid
        for child in worker.children()
        if any(one.laddr.port == port for one in child.net_connections("tcp") if one.laddr)
    )


def _is_up() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/health", trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False
