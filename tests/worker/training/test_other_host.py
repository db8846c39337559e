"""A host is killed in mid-job; another one ends the job with the same curve and the same weights."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.adapters import records as adapter_records
from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.jobs import events, records as job_records
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_dataset, make_job
from tests.tiny_model import NAME
from tests.waiting import wait_for
from tests.worker.training.conftest import make_rows

StartHost = Callable[[str], subprocess.Popen[bytes]]

SPEC: dict[str, Any] = {
    "base_model": NAME,
    "lora": {"r": 4, "dropout": 0.1},
    "training": {
        "max_steps": 120,
        "logging_steps": 1,
        "save_steps": 10,
        "learning_rate": 1e-2,
        "validation_split": 0.2,
        "eval_steps": 10,
        "early_stopping_patience": 100,
    },
}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def start_host(settings: Settings, models_folder: Path, tmp_path: Path) -> Iterator[StartHost]:
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "TUNESMITH_DATA_DIR": str(tmp_path / name),
            "TUNESMITH_DATABASE_URL": settings.database_url,
            "TUNESMITH_ARTIFACTS_URL": str(tmp_path / "store"),
            "TUNESMITH_MODELS_DIR": str(models_folder),
            "TUNESMITH_LEASE_SECONDS": "3",
            "HF_HUB_CACHE": str(tmp_path / "no-hub-cache"),
        }
        with (tmp_path / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.scripted.host", name]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def submit(database: Database, store: ArtifactStore, tmp_path: Path) -> Callable[[], str]:
    def submit_job() -> str:
        with database.transaction() as session:
            dataset = make_dataset(session, store, tmp_path, make_rows(20))
            return make_job(session, dataset=dataset.id, **SPEC).id

    return submit_job


def find_job(database: Database, job_id: str) -> tables.JobRow:
    with database.snapshot() as session:
        return job_records.get(session, job_id)


def read_curve(database: Database, job_id: str) -> dict[tuple[str, int], set[float]]:
    """All losses that were recorded for each step: a resumed attempt repeats those after its checkpoint."""
    curve: dict[tuple[str, int], set[float]] = {}
    with database.snapshot() as session:
        found: Any = events.read(session, job_id, limit=1000, types=["metrics", "eval"])
    for event in found:
        curve.setdefault((event.type, event.data.step), set()).add(event.data.loss)
    return curve


def read_weights(database: Database, store: ArtifactStore, job_id: str) -> bytes:
    adapter = find_job(database, job_id).adapter
    assert adapter
    with database.snapshot() as session:
        artifact = adapter_records.get(session, adapter.id).artifact
    with store.open(f"{artifact}/adapter_model.safetensors") as file:
        return file.read()


@pytest.mark.slow
def test_another_host_ends_the_job_of_a_killed_one_as_it_would_have(
    start_host: StartHost, submit: Callable[[], str], database: Database, store: ArtifactStore
) -> None:
    with database.transaction() as session:
        # Another host trains, now and for a while, so that the shared folder gets copies.
        soon = datetime.now(UTC) + timedelta(hours=1)
        workers.heartbeat(session, WorkerReport("third-1-aaaaaa", ["train"]), now=soon)
    disturbed = submit()
    first = start_host("first")
    wait_for(lambda: (find_job(database, disturbed).stored_checkpoint_step or 0) >= 20, "a stored checkpoint")
    first.kill()
    first.wait()
    at = find_job(database, disturbed)
    assert at.state == "running"

    start_host("second")
    wait_for(lambda: find_job(database, disturbed).state == "succeeded", "the job to succeed")
    undisturbed = submit()
    wait_for(lambda: find_job(database, undisturbed).state == "succeeded", "the undisturbed job to succeed")

    assert [one.exit_reason for one in find_job(database, disturbed).attempts] == ["worker_lost", "succeeded"]
    with database.snapshot() as session:
        found: Any = events.read(session, disturbed, limit=1000, types=["log", "warning"])
        said = [event.data.message for event in found]
    fetched = [line for line in said if line.endswith("was fetched from the artifact store.")]
    assert len(fetched) == 1
    assert fetched[0].split()[5] != "0"
    assert read_curve(database, disturbed) == read_curve(database, undisturbed)
    assert read_weights(database, store, disturbed) == read_weights(database, store, undisturbed)
    # They are deleted after the job has succeeded.
    wait_for(lambda: store.list_files("checkpoints") == [], "the copies to be deleted")
