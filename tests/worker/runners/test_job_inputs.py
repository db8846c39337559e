"""What an attempt begins with: files of its own, and none of those of earlier attempts."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.core.adapters import records as adapter_records
from app.core.datasets.unused_fields import UnusedField
from app.core.jobs import events
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import CHAT_ROW, make_dataset, make_job
from tests.worker.runners.job_runs import claim, job_of
from worker.runners import job_inputs
from worker.runners.jobs import JobRunner


def test_what_a_dead_worker_left_is_removed(
    runner: JobRunner,
    claimed: Callable[[str], JobLease],
    database: Database,
    store: ArtifactStore,
    settings: Settings,
    tmp_path: Path,
) -> None:
    first = claimed("dies-once")
    runner.run(first)
    undelivered = settings.job_folder(first.job_id) / "attempt-1-adapter"
    undelivered.mkdir()
    (undelivered / "weights").write_bytes(b"weights")
    store.put_folder(adapter_records.name_artifact(first.job_id, 1)[1], undelivered)
    checkpoints = settings.job_folder(first.job_id) / "checkpoints"
    runner.run(claim(database))
    assert len(store.list_files("adapters")) == 1
    assert not undelivered.exists()

    # Killed after its last transaction, a worker leaves checkpoints behind; so does a job of another host.
    of_deleted_job = settings.job_folder("job_deleted") / "checkpoints"
    of_failed_job = settings.job_folder(claimed("fails").job_id) / "checkpoints"
    for folder in (checkpoints, of_deleted_job, of_failed_job):
        folder.mkdir(parents=True)
    runner.run(claimed("finishes"))
    assert [one.exists() for one in (checkpoints, of_deleted_job, of_failed_job)] == [False, False, True]


def test_the_child_is_told_where_the_adapter_to_continue_from_is(
    runner: JobRunner,
    claimed: Callable[[str], JobLease],
    database: Database,
    store: ArtifactStore,
    tmp_path: Path,
) -> None:
    runner.run(claimed("finishes"))
    with database.transaction() as session:
        adapter = adapter_records.get(session, "finishes")
        dataset, validation = (make_dataset(session, store, tmp_path) for _ in range(2))
        spec: dict[str, Any] = {"continue_from": adapter.id, "validation_dataset": validation.id}
        make_job(session, name="shows-its-inputs", dataset=dataset.id, **spec)
    lease = claim(database)
    runner.run(lease)
    with database.snapshot() as session:
        found = [event.data.message for event in events.read(session, lease.job_id) if event.type == "log"]  # type: ignore[union-attr]
    assert found == [f"{adapter.artifact}/adapter_model.safetensors", validation.artifact]


def test_every_attempt_is_told_when_the_job_was_submitted(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    """Chat templates print this date, so that a second attempt trains on the same tokens."""
    submitted_at = datetime(2026, 3, 5, 23, 59, tzinfo=UTC)
    with database.transaction() as session:
        make_job(session, dataset=make_dataset(session, store, tmp_path).id, now=submitted_at)
    lease = claim(database)

    requests = [
        job_inputs.make_request(settings, database, store, replace(lease, attempt=attempt))
        for attempt in (1, 2)
    ]

    assert [request.submitted_at for request in requests] == [submitted_at] * 2


def test_the_child_is_told_which_fields_are_not_used(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    with database.transaction() as session:
        dataset = make_dataset(session, store, tmp_path, [{**CHAT_ROW, "id": 1}])
        make_job(session, dataset=dataset.id)

    request = job_inputs.make_request(settings, database, store, claim(database))

    assert request.unused_fields == [UnusedField("id", 1, False, lines=[1])]


@pytest.mark.parametrize("kind", ["dataset", "validation_dataset", "continue_from"])
def test_whatever_is_deleted_meanwhile_is_named(
    runner: JobRunner, database: Database, store: ArtifactStore, tmp_path: Path, kind: str
) -> None:
    with database.transaction() as session:
        present = make_dataset(session, store, tmp_path).id
        make_job(session, **{"dataset": present, kind: "gone_0123"})
    lease = claim(database)
    runner.run(lease)
    job = job_of(database, lease)
    assert (job.state, job.error_code) == ("failed", "job_failed")
    assert "deleted before the job began" in (job.error_message or "")
    assert "gone_0123" in (job.error_message or "")
