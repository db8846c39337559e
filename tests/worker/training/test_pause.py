"""A real training job, paused and resumed through the queue: as if it had never stopped."""

from pathlib import Path
from typing import Any

import pytest

from app.core.adapters import records as adapter_records
from app.core.jobs import events, records as job_records
from app.core.jobs.events import Event, Metrics
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_dataset, make_job
from tests.tiny_model import NAME
from tests.worker.runners.job_runs import claim, job_of, make_runner
from tests.worker.runners.test_jobs import running, wait_for_step
from tests.worker.training.conftest import make_rows
from worker.processes.prewarmed import PrewarmedTrainer
from worker.runners.jobs import JobRunner

# Enough to be paused in the middle of, also where the worker is slow to hear of it.
STEPS = 200
SPEC: dict[str, Any] = {
    "base_model": NAME,
    "lora": {"r": 4, "dropout": 0.1},
    "training": {"max_steps": STEPS, "logging_steps": 1, "save_steps": 1000, "learning_rate": 1e-2},
}


@pytest.fixture
def runner(settings: Settings, database: Database, store: ArtifactStore, models_folder: Path) -> JobRunner:
    here = settings.model_copy(update={"models_dir": models_folder})
    return make_runner(here, database, store, PrewarmedTrainer(here, "worker"))


def points(database: Database, job_id: str) -> list[dict[str, Any]]:
    """The loss curve, without what the clock says."""
    with database.snapshot() as session:
        found: list[Event] = events.read(session, job_id, limit=1000, types=["metrics"])
    kept = {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens"}
    assert all(isinstance(event.data, Metrics) for event in found)
    return [event.data.model_dump(include=kept) for event in found]


def weights(database: Database, store: ArtifactStore, job_id: str) -> bytes:
    with database.snapshot() as session:
        adapter = adapter_records.get(session, job_id)
    with store.open(f"{adapter.artifact}/adapter_model.safetensors") as file:
        return file.read()


def test_a_paused_and_resumed_job_has_the_curve_and_weights_of_an_undisturbed_one(
    runner: JobRunner, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    with database.transaction() as session:
        dataset = make_dataset(session, store, tmp_path, make_rows(10)).id
        undisturbed, disturbed = (make_job(session, dataset=dataset, **SPEC).id for _ in range(2))
    runner.run(claim(database))
    lease = claim(database)
    with running(runner, lease):
        wait_for_step(database, lease)
        with database.transaction() as session:
            job_records.request_pause(session, lease.job_id)
    paused = job_of(database, lease)
    assert paused.state == "paused"
    assert 0 < paused.step < STEPS

    with database.transaction() as session:
        job_records.resume(session, disturbed)
    runner.run(claim(database))

    assert [point["step"] for point in points(database, disturbed)] == list(range(1, STEPS + 1))
    assert points(database, disturbed) == points(database, undisturbed)
    assert weights(database, store, disturbed) == weights(database, store, undisturbed)
