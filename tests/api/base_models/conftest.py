"""Downloaded models, and an engine's real routes of base models over a real cache."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from huggingface_hub import constants
from starlette.applications import Starlette
from starlette.routing import Route

from app.core.engine import workers
from app.core.engine.state import EngineState
from app.core.engine.workers import WorkerReport
from app.core.storage.database import Database
from tests.fakes import ServerThread
from tests.servers.hub import FakeHub
from worker.base_models.service import BaseModelService
from worker.models.files import hub_cache


class CacheEngine:
    """A worker's row with what is in the cache, and an engine that searches and deletes."""

    def __init__(self, database: Database, cache: Path, routes: Sequence[Route] = ()) -> None:
        self.state = EngineState()
        self.cache = cache
        self._database = database
        service = BaseModelService(lambda: self.state, "secret", self.beat)
        self._server = ServerThread(Starlette(routes=[*service.routes(), *routes]), lifespan="off")

    def add(self, name: str, *, days_old: float = 0) -> None:
        """A model of 1,000 bytes of weights."""
        snapshot = self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / ("5" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (snapshot / "model.safetensors").write_bytes(bytes(1000))
        for path in snapshot.iterdir():
            moment = path.stat().st_mtime - days_old * 86_400
            os.utime(path, (moment, moment))
        self.beat()

    def beat(self) -> None:
        """A heartbeat of the worker."""
        report = WorkerReport(
            "worker-1",
            ["train", "serve"],
            engine_url=self._server.url,
            engine_token="secret",
            engine_state=self.state,
            downloaded=hub_cache.list_downloaded(),
        )
        with self._database.transaction() as session:
            workers.heartbeat(session, report)

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    yield hub
    hub.stop()


@pytest.fixture
def box(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CacheEngine]:
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    box = CacheEngine(database, cache)
    box.beat()
    yield box
    box.stop()
