"""Checkpoints in the artifact store: another host resumes from the newest one, and says where it can't."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.errors.storage import StoreUnreachable
from app.core.jobs import checkpoints, events, queue, records as job_records
from app.core.jobs.checkpoints import StoredCheckpoint
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_dataset, make_job
from tests.waiting import wait_for
from tests.worker.runners.job_runs import claim, job_of, make_runner
from tests.worker.runners.test_jobs import running
from worker import checkpoint_folders
from worker.processes.prewarmed import PrewarmedTrainer
from worker.runners import checkpoint_uploads, stored_checkpoints
from worker.runners.checkpoint_uploads import CheckpointUploads
from worker.runners.jobs import JobRunner

HostOf = Callable[[str], tuple[JobRunner, Settings]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtifactStore]:
    found = ArtifactStore(f"memory://{tmp_path}")
    yield found
    found.delete("checkpoints")


@pytest.fixture
def host(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> HostOf:
    """Makes this process the only worker of a host with a data folder of its own."""

    def be(name: str) -> tuple[JobRunner, Settings]:
        monkeypatch.setattr(workers, "name_host", lambda: name)
        changes = {"data_dir": tmp_path / name, "cancel_grace_seconds": 5.0, "shutdown_grace_seconds": 5.0}
        own = settings.model_copy(update=changes)
        prewarmed = PrewarmedTrainer(own, "worker", module="tests.scripted.training")
        return make_runner(own, database, store, prewarmed, threading.Event()), own

    return be


@pytest.fixture
def submitted(database: Database, store: ArtifactStore, tmp_path: Path) -> str:
    with database.transaction() as session:
        dataset = make_dataset(session, store, tmp_path)
        return make_job(session, name="writes-checkpoints", dataset=dataset.id).id


def run_until_paused(runner: JobRunner, database: Database, *, step: int) -> JobLease:
    """Run an attempt until its checkpoint of this step is recorded, and pause it."""
    lease = claim(database)
    with running(runner, lease):
        wait_for(lambda: job_of(database, lease).checkpoint_step == step, f"step {step}")
        with database.transaction() as session:
            job_records.request_pause(session, lease.job_id)
    with database.transaction() as session:
        job_records.resume(session, lease.job_id)
    return lease


def messages(database: Database, job_id: str) -> list[str]:
    with database.snapshot() as session:
        found: Any = events.read(session, job_id)
        return [event.data.message for event in found if event.type in ("log", "warning")]


def test_another_host_resumes_from_the_newest_checkpoint(
    host: HostOf, submitted: str, database: Database, store: ArtifactStore
) -> None:
    runner, _settings = host("first")
    lease = run_until_paused(runner, database, step=12)
    row = job_of(database, lease)
    assert (row.checkpoint_host, row.stored_checkpoint_step) == ("first", 12)
    # Only the newest one stays in the store.
    assert {name.split("/")[1] for name in store.list_files("checkpoints")} == {"attempt-1-step-12"}

    runner, settings = host("second")
    run_until_paused(runner, database, step=22)
    folder = settings.job_folder(submitted)
    assert (folder / "checkpoints/checkpoint-12/optimizer.pt").read_bytes() == b"state of 12"
    assert (folder / "best-adapters/step-12/adapter_model.safetensors").read_bytes() == b"best of 12"
    said = messages(database, submitted)
    assert "The checkpoint of step 12 was fetched from the artifact store." in said
    assert "found ['checkpoint-12']" in said
    assert job_of(database, lease).stored_checkpoint == f"checkpoints/{submitted}/attempt-2-step-22"


def test_the_host_that_has_the_newest_checkpoint_fetches_nothing(
    host: HostOf, submitted: str, database: Database
) -> None:
    for step in (12, 22):
        runner, _settings = host("first")
        run_until_paused(runner, database, step=step)
    assert not [line for line in messages(database, submitted) if "fetched" in line]


@pytest.fixture
def left_by_first(database: Database, store: ArtifactStore, submitted: str, tmp_path: Path) -> JobLease:
    """A new lease on the job; the host `first` wrote a checkpoint of step 12, which is in the store."""
    lease = claim(database)
    folder = tmp_path / "copy" / "checkpoints" / "checkpoint-12"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"state of 12")
    checkpoint_folders.seal(folder)
    stored = StoredCheckpoint(checkpoints.name_artifact(lease, 12), 12)
    size_bytes = store.put_folder(stored.artifact, tmp_path / "copy")
    with database.transaction() as session:
        checkpoints.record_written(session, lease, 12, "first")
        checkpoints.record_stored(session, lease, stored, size_bytes)
        queue.release(session, lease, reason="The worker is shutting down.")
    return claim(database)


def test_a_job_that_starts_earlier_says_so(
    settings: Settings, database: Database, store: ArtifactStore, left_by_first: JobLease
) -> None:
    with database.transaction() as session:
        checkpoints.record_written(session, left_by_first, 20, "first")
    stored_checkpoints.restore(settings, database, store, left_by_first)
    assert messages(database, left_by_first.job_id)[-2:] == [
        "The checkpoint of step 12 was fetched from the artifact store.",
        "The newest checkpoint, of step 20, is on first and nowhere else. The job goes on from step 12.",
    ]


def test_a_job_that_starts_anew_says_so(
    settings: Settings, database: Database, store: ArtifactStore, left_by_first: JobLease
) -> None:
    """As on hosts without a common store, or with one that has lost the checkpoint."""
    store.delete("checkpoints")
    stored_checkpoints.restore(settings, database, store, left_by_first)
    assert messages(database, left_by_first.job_id) == [
        "The newest checkpoint, of step 12, is on first and nowhere else. The job goes on from its start."
    ]
    assert job_of(database, left_by_first).stored_checkpoint is None


def test_a_stored_checkpoint_that_is_damaged_is_not_used(
    settings: Settings, database: Database, store: ArtifactStore, left_by_first: JobLease, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_bytes(b"state of 99")
    artifact = job_of(database, left_by_first).stored_checkpoint
    store.put_file(f"{artifact}/checkpoints/checkpoint-12/optimizer.pt", tmp_path / "wrong")
    stored_checkpoints.restore(settings, database, store, left_by_first)
    damaged, earlier = messages(database, left_by_first.job_id)
    assert (
        "The checkpoint of step 12 is damaged and was removed: optimizer.pt is not what was written"
        in damaged
    )
    assert "The job goes on from its start." in earlier
    assert not (settings.job_folder(left_by_first.job_id) / "checkpoints" / "checkpoint-12").exists()


def test_checkpoints_leave_the_store_when_the_job_succeeds(
    host: HostOf, submitted: str, database: Database, store: ArtifactStore
) -> None:
    runner, settings = host("first")
    run_until_paused(runner, database, step=12)
    with database.transaction() as session:
        job_records.get(session, submitted).spec = {
            **job_records.get(session, submitted).spec,
            "name": "finishes",
        }
    lease = claim(database)
    runner.run(lease)
    row = job_of(database, lease)
    assert (row.state, row.stored_checkpoint, row.checkpoint_step) == ("succeeded", None, None)
    assert store.list_files("checkpoints") == []
    assert not (settings.job_folder(submitted) / "outgoing-checkpoints").exists()


@pytest.mark.parametrize(("elsewhere", "is_copied"), [("", False), ("other", True)])
def test_a_folder_outside_of_the_data_folder_gets_copies_where_another_host_trains(
    settings: Settings, database: Database, tmp_path: Path, elsewhere: str, is_copied: bool
) -> None:
    store = ArtifactStore(str(tmp_path / "shared"))
    if elsewhere:
        with database.transaction() as session:
            workers.heartbeat(session, workers.WorkerReport(f"{elsewhere}-1-aaaaaa", ["train"]))
    with database.transaction() as session:
        dataset = make_dataset(session, store, tmp_path)
        make_job(session, name="writes-checkpoints", dataset=dataset.id)
    brisk = settings.model_copy(update={"shutdown_grace_seconds": 5.0})
    runner = make_runner(
        brisk, database, store, PrewarmedTrainer(brisk, "worker", module="tests.scripted.training")
    )
    lease = run_until_paused(runner, database, step=12)
    assert bool(job_of(database, lease).stored_checkpoint) is is_copied


def test_a_checkpoint_that_is_written_while_the_database_is_away_is_copied(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = CheckpointUploads(settings, database, ArtifactStore(str(tmp_path / "shared")))
    assert not uploads._is_wanted()

    def refuse(session: Session, **options: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("unable to open database file"))

    monkeypatch.setattr(workers, "find_alive", refuse)
    assert uploads._is_wanted()


def test_one_box_copies_nothing(settings: Settings, database: Database, tmp_path: Path) -> None:
    store = ArtifactStore(settings.artifacts_url)
    with database.transaction() as session:
        workers.heartbeat(session, workers.WorkerReport("other-1-aaaaaa", ["train"]))
        make_job(session, name="writes-checkpoints", dataset=make_dataset(session, store, tmp_path).id)
    brisk = settings.model_copy(update={"shutdown_grace_seconds": 5.0})
    runner = make_runner(
        brisk, database, store, PrewarmedTrainer(brisk, "worker", module="tests.scripted.training")
    )
    lease = run_until_paused(runner, database, step=12)
    assert job_of(database, lease).checkpoint_step == 12
    assert store.list_files("checkpoints") == []


def test_a_worker_that_lost_its_lease_names_no_checkpoint(
    host: HostOf, submitted: str, database: Database, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_put, put_folder = threading.Event(), store.put_folder

    def put_late(key: str, folder: Path) -> int:
        may_put.wait(60)
        return put_folder(key, folder)

    monkeypatch.setattr(store, "put_folder", put_late)
    runner, _settings = host("first")
    lease = claim(database)
    with running(runner, lease):
        wait_for(lambda: job_of(database, lease).checkpoint_step == 12, "step 12")
        with database.transaction() as session:
            job_records.get(session, submitted).lease_token = "another's"
    may_put.set()
    wait_for(
        lambda: not any("checkpoints of" in thread.name for thread in threading.enumerate()),
        "the upload to end",
    )
    assert job_of(database, lease).stored_checkpoint is None
    assert store.list_files("checkpoints") == []


@pytest.fixture
def away(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set while the artifact store takes no checkpoints."""
    is_away, put_folder = threading.Event(), store.put_folder
    is_away.set()

    def put(key: str, folder: Path) -> int:
        if is_away.is_set():
            raise StoreUnreachable("The artifact store does not answer.")
        return put_folder(key, folder)

    monkeypatch.setattr(store, "put_folder", put)
    monkeypatch.setattr(checkpoint_uploads, "_RETRY_SECONDS", 0.01)
    return is_away


def test_a_checkpoint_is_copied_once_the_store_is_back(
    host: HostOf, submitted: str, database: Database, away: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    runner, _settings = host("first")
    lease = claim(database)
    with running(runner, lease):
        wait_for(lambda: "is to be stored later" in caplog.text, "a copy to fail")
        away.clear()
        wait_for(lambda: job_of(database, lease).stored_checkpoint_step == 12, "step 12")
        with database.transaction() as session:
            job_records.request_pause(session, lease.job_id)
    assert job_of(database, lease).state == "paused"


def test_a_job_is_let_go_without_its_last_copy_while_the_store_is_away(
    host: HostOf, submitted: str, database: Database, away: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    runner, settings = host("first")
    runner.handler.stop_grace_seconds = 3600.0  # for which nobody waits
    lease = run_until_paused(runner, database, step=12)
    row = job_of(database, lease)
    assert (row.state, row.stored_checkpoint) == ("queued", None)
    assert "its last checkpoint is not in the artifact store" in caplog.text
    wait_for(lambda: not (settings.job_folder(submitted) / "outgoing-checkpoints").exists(), "no links left")


def test_a_job_is_let_go_once_its_last_checkpoint_is_in_the_store(
    host: HostOf, submitted: str, database: Database, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_has_ended, put_folder = threading.Event(), store.put_folder

    def put_late(key: str, folder: Path) -> int:
        child_has_ended.wait(60)
        return put_folder(key, folder)

    runner, _settings = host("first")
    finish_copies = runner.handler.finish_copies

    def finish_late(lease: JobLease, *, timeout_seconds: float) -> None:
        child_has_ended.set()
        finish_copies(lease, timeout_seconds=60)

    monkeypatch.setattr(store, "put_folder", put_late)
    monkeypatch.setattr(runner.handler, "finish_copies", finish_late)
    lease = run_until_paused(runner, database, step=12)
    assert job_of(database, lease).stored_checkpoint_step == 12
