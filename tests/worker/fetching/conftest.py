"""A Hub that a fetching child really talks to, and a runner that fetches from it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.datasets import fetches
from app.core.datasets.fetches import HubSource
from app.core.datasets.inspection import OnProblem
from app.core.datasets.unused_fields import OnUnused
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.servers.hub import FakeHub
from worker.runners.fetches import FetchHandler, FetchRunner

Fetch = Callable[..., tables.DatasetRow]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.stop()


@pytest.fixture
def runner(
    settings: Settings, database: Database, store: ArtifactStore, stop: threading.Event
) -> FetchRunner:
    return FetchRunner(settings, database, store, FetchHandler(settings, database, store), stop=stop)


@pytest.fixture
def submit(database: Database) -> Callable[..., str]:
    def submit_fetch(**source: Any) -> str:
        column_map = source.pop("column_map", {})
        on_problem = source.pop("on_problem", OnProblem.REFUSE)
        on_unused = source.pop("on_unused", OnUnused.REFUSE)
        source = {"hub_dataset": "me/rows", **source}
        with database.transaction() as session:
            return fetches.submit(
                session,
                HubSource.model_validate(source),
                name="rows",
                column_map=column_map,
                on_problem=on_problem,
                on_unused=on_unused,
                max_waiting=10,
            ).id

    return submit_fetch


@pytest.fixture
def fetch(database: Database, runner: FetchRunner, submit: Callable[..., str]) -> Fetch:
    """A function that submits a fetch, runs it, and returns the dataset's row."""

    def fetch_to_the_end(**source: Any) -> tables.DatasetRow:
        dataset_id = submit(**source)
        lease = runner.claim()
        assert lease is not None
        runner.run(lease)
        with database.snapshot() as session:
            dataset = session.get(tables.DatasetRow, dataset_id)
        assert dataset is not None
        return dataset

    return fetch_to_the_end
