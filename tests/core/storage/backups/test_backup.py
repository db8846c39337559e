"""Backups of a running Tunesmith, restored into an empty one."""

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.adapters import imports as adapter_imports
from app.core.datasets import fetches, records as dataset_records
from app.core.datasets.fetches import fetch_queue
from app.core.datasets.inspection import OnProblem
from app.core.jobs import queue
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.backups import backup
from app.core.storage.backups.backup import write_backup
from app.core.storage.backups.restore import restore_backup
from app.core.storage.database import Database
from tests.core.storage.backups.contents import add_adapter, add_dataset, members, take
from tests.factories import make_job


def test_a_restored_database_has_the_same_rows_and_files(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path, empty: Settings
) -> None:
    add_adapter(database, store, tmp_path)
    dataset_id = add_dataset(database, store, tmp_path)
    with database.transaction() as session:
        make_job(session, dataset=dataset_id)
    restore_backup(empty, io.BytesIO(take(settings)))
    there, restored_store = Database(empty.database_url), ArtifactStore(empty.artifacts_url)
    with database.snapshot() as before, there.snapshot() as after:
        for table in (tables.DatasetRow, tables.JobRow, tables.EventRow, tables.AdapterRow):
            rows = select(*table.__table__.columns)
            assert list(map(tuple, after.execute(rows))) == list(map(tuple, before.execute(rows)))
        rows_file = after.get_one(tables.DatasetRow, dataset_id).artifact
    assert restored_store.open(rows_file).read() == store.open(rows_file).read()
    with restored_store.open("adapters/ad_0000000000000000/adapter_model.safetensors") as weights:
        assert weights.read() == b"weights"
    there.close()


def test_an_interrupted_job_keeps_its_checkpoints_and_a_finished_one_leaves_none(
    settings: Settings, database: Database, empty: Settings
) -> None:
    with database.transaction() as session:
        waiting, done = make_job(session), make_job(session)
        done.state = "succeeded"
    for job in (waiting, done):
        for name in ("checkpoint-4", "checkpoint-8.partial"):
            folder = settings.job_folder(job.id) / "checkpoints" / name
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(b"step")
    restore_backup(empty, io.BytesIO(take(settings)))
    found = {str(path.relative_to(empty.data_dir)) for path in empty.job_folder("*").parent.rglob("weights")}
    assert found == {f"jobs/{waiting.id}/checkpoints/checkpoint-4/weights"}


def test_a_stored_checkpoint_comes_with_its_job_and_one_that_is_gone_is_no_loss(
    settings: Settings, database: Database, store: ArtifactStore, empty: Settings, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"step")
    with database.transaction() as session:
        for job in (make_job(session), make_job(session)):
            job.stored_checkpoint = f"checkpoints/{job.id}/attempt-1-step-5"
        there = job.stored_checkpoint
    store.put_file(f"{there}/weights", tmp_path / "weights")
    restore_backup(empty, io.BytesIO(take(settings)))
    assert ArtifactStore(empty.artifacts_url).list_files("checkpoints") == [
        f"{there.removeprefix('checkpoints/')}/weights"
    ]


def test_a_dataset_deleted_during_a_backup_is_not_in_it(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staying, doomed = add_dataset(database, store, tmp_path), add_dataset(database, store, tmp_path)
    copy_database: Callable[[Database, Path], None] = backup._copy_database

    def copy_then_delete(source: Database, path: Path) -> None:
        copy_database(source, path)
        with database.transaction() as session:
            found = session.get(tables.DatasetRow, doomed)
            if found:
                store.delete(dataset_records.delete(session, doomed))

    monkeypatch.setattr(backup, "_copy_database", copy_then_delete)
    tar = io.BytesIO()
    summary = write_backup(settings, tar)
    assert (summary.datasets, summary.lost) == (1, [])
    assert [name for name in members(tar.getvalue()) if name.startswith("artifacts/")] == [
        f"artifacts/datasets/{staying}/rows.jsonl"
    ]


def test_every_row_has_its_file_however_much_is_added_and_deleted_meanwhile(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    stop = threading.Event()

    def churn() -> None:
        folder = tmp_path / "churn"
        folder.mkdir()
        while not stop.is_set():
            dataset_id = add_dataset(database, store, folder)
            with database.transaction() as session:
                artifact = dataset_records.delete(session, dataset_id)
            store.delete(artifact)

    for _ in range(5):
        add_dataset(database, store, tmp_path)
    writer = threading.Thread(target=churn)
    writer.start()
    try:
        tars = [take(settings) for _ in range(5)]
    finally:
        stop.set()
        writer.join()
    for number, tar in enumerate(tars):
        there = Settings(data_dir=tmp_path / f"restored-{number}")
        restore_backup(there, io.BytesIO(tar))
        restored, restored_store = Database(there.database_url), ArtifactStore(there.artifacts_url)
        with restored.snapshot() as session:
            named = session.scalars(select(tables.DatasetRow.artifact)).all()
        restored.close()
        assert len(named) >= 5
        assert all(restored_store.open(artifact).read() for artifact in named)


def test_a_dataset_that_is_being_fetched_is_fetched_again_where_it_is_restored(
    settings: Settings, database: Database, empty: Settings
) -> None:
    source = fetches.HubSource(hub_dataset="owner/rows")
    with database.transaction() as session:
        dataset_id = fetches.submit(
            session, source, name="rows", column_map={}, on_problem=OnProblem.SKIP, max_waiting=1
        ).id
        fetch_queue.claim(session, lease_seconds=0.0, max_attempts=3)
    restore_backup(empty, io.BytesIO(take(settings)))
    there = Database(empty.database_url)
    with there.transaction() as session:
        lease = fetch_queue.claim(session, lease_seconds=30.0, max_attempts=3)
    there.close()
    assert lease
    assert (lease.dataset_id, lease.source) == (dataset_id, source)


def test_an_adapter_that_is_being_imported_comes_with_its_files(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path, empty: Settings
) -> None:
    adapter_id, artifact = adapter_imports.name_artifact()
    (tmp_path / "weights").write_bytes(b"weights")
    store.put_file(f"{artifact}/adapter_model.safetensors", tmp_path / "weights")
    with database.transaction() as session:
        adapter_imports.submit(
            session,
            adapter_id,
            name="mine",
            base_model="owner/model",
            quantization=QuantizationSpec(),
            lora=None,
            chat_template=None,
            artifact=artifact,
            size_bytes=7,
            max_waiting=1,
        )
    restore_backup(empty, io.BytesIO(take(settings)))
    restored = Database(empty.database_url)
    with restored.snapshot() as session:
        assert adapter_imports.find_unverified(session) == [adapter_id]
    restored.close()
    assert ArtifactStore(empty.artifacts_url).list_files(artifact) == ["adapter_model.safetensors"]


def test_a_missing_artifact_is_named(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    dataset_id = add_dataset(database, store, tmp_path)
    store.delete(f"datasets/{dataset_id}")
    summary = write_backup(settings, io.BytesIO())
    assert summary.lost == [f"datasets/{dataset_id}/rows.jsonl"]


def test_a_backup_leaves_no_temporary_files(settings: Settings, database: Database) -> None:
    before = {path.name for path in settings.data_dir.iterdir()}
    names = members(take(settings)).keys()
    assert list(names) == ["tunesmith.db", "manifest.json"]
    assert {path.name for path in settings.data_dir.iterdir()} - before <= {
        "scratch",
        "tunesmith.db-wal",
        "tunesmith.db-shm",
    }
    assert list((settings.data_dir / "scratch").iterdir()) == []


def test_a_restored_running_job_is_claimed_again(
    settings: Settings, database: Database, empty: Settings
) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        assert queue.claim(session, "worker-1", lease_seconds=0.0)
    restore_backup(empty, io.BytesIO(take(settings)))
    there = Database(empty.database_url)
    with there.transaction() as session:
        queue.requeue_expired(session, max_lost_attempts=3)
        lease = queue.claim(session, "worker-2", lease_seconds=30.0)
    there.close()
    assert lease
    assert (lease.job_id, lease.attempt) == (job_id, 2)
