from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.core.evaluations import records as evaluation_records
from app.core.exports import records as export_records
from app.core.jobs import checkpoints, events, records as job_records
from app.core.jobs.events import Log
from app.core.retention.stored import StoredKind, measure, remove, remove_aged
from app.core.settings import Settings
from app.core.specs.export import GgufSpec
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.core.evaluations.evaluations import make_evaluation
from tests.factories import make_adapter, make_job

DAY = timedelta(days=1)


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_url)


def make_files(settings: Settings, job_id: str) -> Path:
    folder = settings.job_folder(job_id)
    for name in ("checkpoints/step-5/state.pt", "tensorboard/events", "attempt-1.log"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    return folder


@pytest.fixture
def ended(settings: Settings, database: Database) -> str:
    """The id of a job that was cancelled now, with files in its folder."""
    with database.transaction() as session:
        job_id = make_job(session).id
        job_records.request_cancel(session, job_id)
    make_files(settings, job_id)
    return job_id


@pytest.fixture
def waiting(settings: Settings, database: Database) -> str:
    """The id of a job that waits, with files in its folder."""
    with database.transaction() as session:
        job_id = make_job(session).id
    make_files(settings, job_id)
    return job_id


def test_every_kind_is_measured_and_only_what_has_ended_can_be_deleted(
    settings: Settings, database: Database, ended: str, waiting: str
) -> None:
    found = {one.kind: one for one in measure(settings, database)}
    for kind in (StoredKind.CHECKPOINTS, StoredKind.TENSORBOARD, StoredKind.LOGS):
        one = found[kind]
        assert (one.count, one.size_bytes, one.deletable_count, one.deletable_bytes) == (2, 2000, 1, 1000)
    assert (found[StoredKind.EVENTS].count, found[StoredKind.EVENTS].deletable_count) == (3, 2)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("checkpoints", "checkpoints"), ("tensorboard", "tensorboard"), ("logs", "attempt-1.log")],
)
def test_files_of_ended_jobs_go_and_all_others_stay(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    ended: str,
    waiting: str,
    kind: str,
    name: str,
) -> None:
    assert remove(StoredKind(kind), settings, database, store, older_than=DAY) == (0, 0)
    assert remove(StoredKind(kind), settings, database, store) == (1, 1000)
    left = {path.name for path in settings.job_folder(ended).iterdir()}
    assert left == {"checkpoints", "tensorboard", "attempt-1.log"} - {name}
    assert (settings.job_folder(waiting) / name).exists()


def test_what_a_killed_process_left_of_a_deletion_goes_with_the_next(
    settings: Settings, database: Database, store: ArtifactStore, ended: str
) -> None:
    folder = settings.job_folder(ended)
    (folder / "checkpoints").rename(folder / "checkpoints.removed-0000")
    assert remove(StoredKind.CHECKPOINTS, settings, database, store) == (1, 1000)
    assert not list(folder.glob("checkpoints*"))


def test_a_job_whose_events_went_is_retried_with_events_from_1(
    settings: Settings, database: Database, store: ArtifactStore, ended: str, waiting: str
) -> None:
    assert remove(StoredKind.EVENTS, settings, database, store)[0] == 2
    with database.transaction() as session:
        job_records.retry(session, ended)
        events.append(session, ended, [Log(message="Again.")])
    with database.snapshot() as session:
        seqs = select(tables.EventRow.seq).where(tables.EventRow.job_id == ended)
        assert list(session.scalars(seqs.order_by(tables.EventRow.seq))) == [1, 2]
        others = select(func.count()).where(tables.EventRow.job_id == waiting)
        assert session.scalar(others) == 1


def test_exports_that_have_ended_go(settings: Settings, database: Database, store: ArtifactStore) -> None:
    with database.transaction() as session:
        adapter = make_adapter(session)
        spec = GgufSpec(format="gguf")
        kept, cancelled = (export_records.submit(session, adapter, spec, max_waiting=9).id for _ in "ab")
        export_records.cancel(session, cancelled)
    assert remove(StoredKind.EXPORTS, settings, database, store) == (1, 0)
    with database.snapshot() as session:
        assert list(session.scalars(select(tables.ExportRow.id))) == [kept]


def test_only_checkpoints_age_by_default_and_after_90_days(
    settings: Settings, database: Database, store: ArtifactStore, ended: str
) -> None:
    now = datetime.now(UTC)
    assert remove_aged(settings, database, store, now=now + 89 * DAY) == {}
    assert remove_aged(settings, database, store, now=now + 91 * DAY) == {StoredKind.CHECKPOINTS: 1}
    settings.keep_events_days = 30
    assert remove_aged(settings, database, store, now=now + 31 * DAY) == {StoredKind.EVENTS: 2}


def test_evaluations_that_have_ended_go(settings: Settings, database: Database, store: ArtifactStore) -> None:
    with database.transaction() as session:
        kept, cancelled = (make_evaluation(session).id for _ in "ab")
        evaluation_records.cancel(session, cancelled)
    found = {one.kind: one for one in measure(settings, database)}[StoredKind.EVALUATIONS]
    assert (found.count, found.deletable_count) == (2, 1)
    settings.keep_evaluations_days = 30
    now = datetime.now(UTC) + 31 * DAY
    assert remove_aged(settings, database, store, now=now) == {StoredKind.EVALUATIONS: 1}
    with database.snapshot() as session:
        assert list(session.scalars(select(tables.EvaluationRow.id))) == [kept]


def test_checkpoints_in_the_store_are_measured_and_deleted_too(
    settings: Settings, database: Database, store: ArtifactStore, ended: str, tmp_path: Path
) -> None:
    (tmp_path / "state").write_bytes(bytes(500))
    key = f"{checkpoints.name_folder(ended)}/attempt-1-step-5"
    store.put_file(f"{key}/state", tmp_path / "state")
    with database.transaction() as session:
        row = job_records.get(session, ended)
        row.stored_checkpoint, row.stored_checkpoint_step, row.stored_checkpoint_bytes = key, 5, 500
    [found] = [one for one in measure(settings, database) if one.kind is StoredKind.CHECKPOINTS]
    assert (found.count, found.size_bytes, found.deletable_bytes) == (1, 1500, 1500)
    assert remove(StoredKind.CHECKPOINTS, settings, database, store) == (1, 1500)
    assert store.list_files("checkpoints") == []
    with database.snapshot() as session:
        assert checkpoints.find(session, ended).stored is None
