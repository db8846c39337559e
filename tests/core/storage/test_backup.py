"""Backups of a running Tunesmith, restored into an empty one."""

import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.adapters import imports as adapter_imports
from app.core.datasets import fetches, records as dataset_records
from app.core.datasets.fetches import fetch_queue
from app.core.datasets.inspection import OnProblem
from app.core.errors.storage import BackupUnusable, NotEmpty
from app.core.jobs import queue
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage import backup, tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.backup import write_backup
from app.core.storage.database import Database
from app.core.storage.restore import restore_backup
from tests.factories import CHAT_ROW, make_adapter, make_dataset, make_job


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_url)


@pytest.fixture
def empty(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "restored")


def add_adapter(database: Database, store: ArtifactStore, folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "adapter_model.safetensors").write_bytes(b"weights")
    store.put_folder("adapters/ad_0000000000000000", folder / "weights")
    with database.transaction() as session:
        make_adapter(session)


def add_dataset(database: Database, store: ArtifactStore, folder: Path) -> str:
    with database.transaction() as session:
        return make_dataset(session, store, folder).id


def take(settings: Settings) -> bytes:
    tar = io.BytesIO()
    write_backup(settings, tar)
    return tar.getvalue()


def members(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]


def rebuilt(contents: dict[str, bytes]) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    target.seek(0)
    return target


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


def test_a_database_with_rows_is_left_as_it_is(settings: Settings, database: Database) -> None:
    with database.transaction() as session:
        make_job(session)
    with pytest.raises(NotEmpty):
        restore_backup(settings, io.BytesIO(take(settings)))


def test_a_backup_cut_short_is_refused_and_changes_nothing(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path, empty: Settings
) -> None:
    add_dataset(database, store, tmp_path)
    contents = members(take(settings))
    del contents["manifest.json"]
    with pytest.raises(BackupUnusable, match="its end is missing"):
        restore_backup(empty, rebuilt(contents))
    assert [path.name for path in empty.data_dir.iterdir() if path.is_dir()] == ["scratch"]
    assert list((empty.data_dir / "scratch").iterdir()) == []


def test_a_backup_that_lacks_a_file_is_refused(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path, empty: Settings
) -> None:
    add_dataset(database, store, tmp_path)
    contents = members(take(settings))
    assert json.loads(contents["manifest.json"])["files"] == 2
    del contents[next(name for name in contents if name.startswith("artifacts/"))]
    with pytest.raises(BackupUnusable, match=r"names 2 files .* 1 were found"):
        restore_backup(empty, rebuilt(contents))


def test_a_flipped_bit_is_refused_wherever_it_is(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path, empty: Settings
) -> None:
    add_dataset(database, store, tmp_path)
    tar = take(settings)
    rows = tar.index(CHAT_ROW["messages"][0]["content"].encode())
    manifest = tar.rindex(b'"format": 1')
    for place in (rows, tar.index(b"SQLite format 3") + 2000, manifest + 4, len(tar) // 3):
        damaged = bytearray(tar)
        damaged[place] ^= 1
        with pytest.raises(BackupUnusable):
            restore_backup(empty, io.BytesIO(bytes(damaged)))
    assert restore_backup(empty, io.BytesIO(tar)) is True


def test_a_damaged_file_is_named(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path, empty: Settings
) -> None:
    add_dataset(database, store, tmp_path)
    contents = members(take(settings))
    name = next(name for name in contents if name.startswith("artifacts/"))
    contents[name] += b" "
    with pytest.raises(BackupUnusable, match=f"The backup is damaged: {name} is not what was written"):
        restore_backup(empty, rebuilt(contents))


def test_a_backup_of_an_earlier_version_has_no_checksums_and_is_restored(
    settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path, empty: Settings
) -> None:
    add_dataset(database, store, tmp_path)
    contents = members(take(settings))
    manifest = json.loads(contents["manifest.json"])
    del manifest["sha256"]
    contents["manifest.json"] = json.dumps(manifest).encode()
    assert restore_backup(empty, rebuilt(contents)) is False


LIST_OF_SUMS = b'{"format": 1, "files": 1, "sha256": ["0"]}'


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"3", b'{"format": 1}', b"[" * 100_000, b"\xff", LIST_OF_SUMS]
)
def test_a_manifest_that_can_t_be_read_is_refused(
    settings: Settings, database: Database, empty: Settings, manifest: bytes
) -> None:
    contents = members(take(settings)) | {"manifest.json": manifest}
    with pytest.raises(BackupUnusable, match="manifest can't be read"):
        restore_backup(empty, rebuilt(contents))


@pytest.mark.parametrize("name", ["../outside", "artifacts/../../outside", "/etc/outside", "other.db"])
def test_a_tar_with_unsafe_paths_is_refused(empty: Settings, tmp_path: Path, name: str) -> None:
    with pytest.raises(BackupUnusable, match="not a backup of Tunesmith"):
        restore_backup(empty, rebuilt({name: b"x"}))
    assert not (tmp_path / "outside").exists()


def test_a_file_that_is_no_tar_is_refused(empty: Settings) -> None:
    with pytest.raises(BackupUnusable, match="can't be read"):
        restore_backup(empty, io.BytesIO(b"no tar at all" * 100))
