"""Checkpoint adapters: stored, named, and the oldest deleted."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.jobs import queue
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_job
from tests.worker.runners.job_runs import job_of
from worker.runners.jobs import JobRunner

KEEPS_TWO = {"training": {"keep_checkpoints": 2}}


def checkpoint_steps(session: Session, job_id: str) -> list[int | None]:
    return [adapter.step for adapter in adapter_records.find_checkpoints(session, job_id)]


def test_the_newest_are_stored_under_names_of_their_own(
    runner: JobRunner, claimed: Callable[..., JobLease], database: Database, store: ArtifactStore
) -> None:
    lease = claimed("keeps", **KEEPS_TWO)
    runner.run(lease)
    with database.snapshot() as session:
        assert checkpoint_steps(session, lease.job_id) == [6, 4]
        newest = adapter_records.get(session, "keeps:ckpt-step-6")
        finished = job_of(database, lease).adapter
    assert finished is not None
    assert finished.name == "keeps"
    assert newest.general_path == finished.general_path == ["lora.use_dora"]
    with store.open(f"{newest.artifact}/adapter_model.safetensors") as file:
        assert file.read() == b"weights of 6"
    assert len({name.partition("/")[0] for name in store.list_files("adapters")}) == 3


def test_the_job_folder_holds_no_checkpoint_adapters_afterwards(
    runner: JobRunner, claimed: Callable[..., JobLease], settings: Settings
) -> None:
    lease = claimed("keeps", **KEEPS_TWO)
    runner.run(lease)
    assert list(settings.job_folder(lease.job_id).rglob("step-*")) == []


def test_a_step_that_an_earlier_attempt_stored_is_not_stored_twice(
    runner: JobRunner, claimed: Callable[..., JobLease], database: Database
) -> None:
    lease = claimed("keeps", training={"keep_checkpoints": 9})
    with database.transaction() as session:
        adapter_id, artifact = adapter_records.name_checkpoint_artifact(lease.job_id, 4)
        adapter_records.add(
            session,
            adapter_id,
            spec=lease.spec,
            job_id=lease.job_id,
            artifact=artifact,
            size_bytes=1,
            step=4,
        )
    runner.run(lease)
    with database.snapshot() as session:
        assert checkpoint_steps(session, lease.job_id) == [6, 4, 2]


def test_one_that_another_job_continues_from_stays(
    runner: JobRunner, claimed: Callable[..., JobLease], database: Database
) -> None:
    lease = claimed("keeps", training={"keep_checkpoints": 1})
    adapter_id, _artifact = adapter_records.name_checkpoint_artifact(lease.job_id, 2)
    with database.transaction() as session:
        make_job(session, continue_from=adapter_id)
    runner.run(lease)
    with database.snapshot() as session:
        assert checkpoint_steps(session, lease.job_id) == [6, 2]


def test_a_disk_that_is_full_fails_the_job_names_no_half_of_one_and_leaves_the_checkpoints(
    runner: JobRunner,
    claimed: Callable[..., JobLease],
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lease = claimed("keeps", **KEEPS_TWO)
    checkpoint = settings.job_folder(lease.job_id) / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)

    def fill_the_disk(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArtifactStore, "put_folder", fill_the_disk)
    runner.run(lease)
    job = job_of(database, lease)
    assert (job.state, job.error_code) == ("failed", "disk_full")
    assert "retry" in (job.error_hint or "")
    assert checkpoint.is_dir()
    with database.transaction() as session:
        assert checkpoint_steps(session, lease.job_id) == []
        assert queue.claim(session, "worker", lease_seconds=30) is None
