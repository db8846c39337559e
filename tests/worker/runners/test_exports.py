"""What becomes of an export when its child, its worker or its row goes away; with real children."""

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.core.exports import records as export_records
from app.core.exports.queue import ExportLease, export_queue
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.tiny_model import NAME
from tests.waiting import wait_for
from worker.runners.exports import EXPORTING_MODULE, ExportHandler, ExportRunner

SCRIPTED = "tests.scripted.export"


def make_runner(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    stop: threading.Event,
    *,
    module: str = EXPORTING_MODULE,
) -> ExportRunner:
    handler = ExportHandler(settings, database, store, module=module)
    return ExportRunner(settings, database, store, handler, stop=stop)


def remove_leftovers(runner: ExportRunner) -> None:
    assert isinstance(runner.handler, ExportHandler)
    runner.handler.remove_leftovers()


@pytest.fixture
def export_settings(settings: Settings, models_folder: Path) -> Settings:
    return settings.model_copy(update={"models_dir": models_folder, "cancel_grace_seconds": 5.0})


@pytest.fixture
def runner(
    export_settings: Settings, database: Database, store: ArtifactStore, stop: threading.Event
) -> ExportRunner:
    """Its children make half an export and then wait."""
    return make_runner(export_settings, database, store, stop, module=SCRIPTED)


@pytest.fixture
def started(runner: ExportRunner, submit_export: Callable[..., str], export_settings: Settings) -> "Started":
    submit_export()
    return Started(runner, export_settings)


class Started:
    """An export that is run in a thread, and whose child has written half of it."""

    def __init__(self, runner: ExportRunner, settings: Settings) -> None:
        lease = runner.claim()
        assert lease is not None
        self.lease: ExportLease = lease
        self.root = settings.data_dir / "exports"
        self._thread = threading.Thread(target=runner.run, args=(lease,))
        self._thread.start()
        wait_for(lambda: (self.root / lease.export_id / lease.token / "half").exists(), "half an export")

    def child(self) -> psutil.Process:
        [process] = find_children(SCRIPTED)
        return process

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def row_of(database: Database, export_id: str) -> tables.ExportRow:
    with database.snapshot() as session:
        return export_records.get(session, export_id)


def assert_nothing_is_left(started: Started, store: ArtifactStore) -> None:
    assert not (started.root / started.lease.export_id / started.lease.token).exists()
    assert store.list_files("exports") == []


def test_a_cancelled_export_leaves_nothing(
    started: Started, database: Database, store: ArtifactStore, runner: ExportRunner
) -> None:
    with database.transaction() as session:
        export_records.cancel(session, started.lease.export_id)
    started.join()
    remove_leftovers(runner)

    assert row_of(database, started.lease.export_id).state == "cancelled"
    assert_nothing_is_left(started, store)
    assert list(started.root.iterdir()) == []


@pytest.mark.parametrize("is_run_elsewhere", [False, True])
def test_a_child_may_undo_its_work_unless_another_worker_is_at_it(
    started: Started, database: Database, is_run_elsewhere: bool
) -> None:
    with database.transaction() as session:
        if is_run_elsewhere:
            export_records.get(session, started.lease.export_id).lease_token = "another"
        else:
            export_records.cancel(session, started.lease.export_id)
    started.join()

    asked = started.root / started.lease.export_id / "asked"
    assert asked.exists() is not is_run_elsewhere


def test_a_child_that_is_killed_leaves_the_export_to_the_next_attempt(
    started: Started, database: Database, store: ArtifactStore
) -> None:
    os.kill(started.child().pid, signal.SIGKILL)
    started.join()

    row = row_of(database, started.lease.export_id)
    assert (row.state, row.attempts, row.files) == ("queued", 1, [])
    assert_nothing_is_left(started, store)


def test_a_worker_that_stops_hands_the_export_back(
    started: Started, database: Database, store: ArtifactStore, stop: threading.Event
) -> None:
    stop.set()
    started.join()

    row = row_of(database, started.lease.export_id)
    assert (row.state, row.attempts) == ("queued", 0)
    assert (started.root / started.lease.export_id / "asked").exists()
    assert_nothing_is_left(started, store)


def test_what_a_killed_worker_left_is_removed(
    runner: ExportRunner, export_settings: Settings, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = export_settings.data_dir / "exports" / "exp_0000000000000000" / "token"
    folder.mkdir(parents=True)
    (tmp_path / "half").write_bytes(b"x")
    store.put_file("exports/exp_0000000000000000/token/half", tmp_path / "half")

    remove_leftovers(runner)

    assert not folder.parent.exists()
    assert store.list_files("exports") == []


def test_an_idle_worker_gives_back_the_room_of_what_nobody_needs(
    runner: ExportRunner, export_settings: Settings
) -> None:
    merged = export_settings.data_dir / "exports" / "exp_0000000000000000" / "merged"
    merged.mkdir(parents=True)

    assert runner.claim() is None

    assert not merged.parent.exists()


def test_a_merge_is_kept_while_an_attempt_may_need_it(
    runner: ExportRunner, export_settings: Settings, database: Database, submit_export: Callable[..., str]
) -> None:
    merged = export_settings.data_dir / "exports" / submit_export() / "merged"
    merged.mkdir(parents=True)
    remove_leftovers(runner)
    assert merged.exists()

    with database.transaction() as session:
        export_records.cancel(session, merged.parent.name)
    remove_leftovers(runner)
    assert not merged.exists()


def test_an_export_is_made_stored_and_named_last(
    export_settings: Settings,
    database: Database,
    store: ArtifactStore,
    stop: threading.Event,
    submit_export: Callable[..., str],
) -> None:
    export_id = submit_export(format="gguf", type="q8_0")
    runner = make_runner(export_settings, database, store, stop)
    lease = runner.claim()
    assert lease is not None

    runner.run(lease)

    row = row_of(database, export_id)
    assert (row.state, row.error) == ("succeeded", None)
    assert row.agreement is not None
    assert row.artifact == runner.handler.artifact(lease)
    assert store.list_files(lease.artifact) == [file["name"] for file in row.files]
    assert list((export_settings.data_dir / "exports").iterdir()) == []


def test_a_failed_export_says_why(
    export_settings: Settings,
    database: Database,
    store: ArtifactStore,
    stop: threading.Event,
    submit_export: Callable[..., str],
) -> None:
    export_id = submit_export()
    models = export_settings.data_dir / "deleted"
    (models / NAME).mkdir(parents=True)
    (models / NAME / "config.json").write_text("{}")
    runner = make_runner(export_settings.model_copy(update={"models_dir": models}), database, store, stop)
    lease = runner.claim()
    assert lease is not None
    shutil.rmtree(models)

    runner.run(lease)

    row = row_of(database, export_id)
    assert row.state == "failed"
    assert (row.error or {})["code"] == "model_missing"
    with database.snapshot() as session:
        assert export_queue.find_tokens(session) == set()
