"""The engine's process, started as by a worker, and a client of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from worker.processes.child_process import ChildProcess
from worker.processes.engine_process import ENGINE_MODULE
from worker.processes.reports import EngineRequest, Listening

TOKEN = "secret"


def engine_request(models_folder: Path, **options: object) -> EngineRequest:
    """What an engine is started with; without `options` it finds no adapters."""
    fields = {"artifacts_url": "nowhere", "cache_folder": models_folder, **options}
    return EngineRequest(host="127.0.0.1", port=0, token=TOKEN, models_folder=models_folder, **fields)


def start_engine(models_folder: Path, artifacts: Path, folder: Path, **options: object) -> ChildProcess:
    """Start an engine; its cache and its log are in `folder`."""
    request = engine_request(
        models_folder, artifacts_url=str(artifacts), cache_folder=folder / "cache", **options
    )
    return ChildProcess(ENGINE_MODULE, request, folder / "engine.log")


@contextmanager
def engine_client(process: ChildProcess) -> Iterator[httpx.Client]:
    """A client of the engine, once it listens."""
    line = process.reports.get(timeout=120)
    assert line, process.log_tail()
    url = f"http://127.0.0.1:{Listening.model_validate_json(line).port}"
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120) as client:
        yield client
