"""Pushes to the Hub by the real exporting child, as the worker runs it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from app.core.exports import records as export_records
from app.core.exports.queue import ExportLease
from app.core.jobs import events
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.factories import make_job
from tests.servers.writable_hub import READER, SIGNATURE, WRITER, WritableHub
from worker.runners.exports import EXPORTING_MODULE, ExportHandler, ExportRunner

REPOSITORY = "me/helper"


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    made = WritableHub()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield made
    made.stop()


@pytest.fixture
def export_settings(settings: Settings, models_folder: Path) -> Settings:
    return settings.model_copy(update={"models_dir": models_folder, "cancel_grace_seconds": 20.0})


@pytest.fixture
def runner(
    export_settings: Settings, database: Database, store: ArtifactStore, stop: threading.Event
) -> ExportRunner:
    handler = ExportHandler(export_settings, database, store)
    return ExportRunner(export_settings, database, store, handler, stop=stop)


@pytest.fixture
def push(submit: Callable[..., str]) -> Callable[..., str]:
    """A function that submits a push and returns the export's id."""
    return partial(submit, format="hub", repository=REPOSITORY)


def claimed(runner: ExportRunner) -> ExportLease:
    lease = runner.claim()
    assert lease is not None
    return lease


def row_of(database: Database, export_id: str) -> tables.ExportRow:
    with database.snapshot() as session:
        return export_records.get(session, export_id)


def code_of(row: tables.ExportRow) -> str | None:
    return row.error["code"] if row.error else None


def child() -> psutil.Process:
    [found] = find_children(EXPORTING_MODULE)
    return found


def run_until_upload(runner: ExportRunner, the_hub: WritableHub) -> threading.Thread:
    """Run the export in a thread and wait until it uploads a large file."""
    the_hub.stalls_uploads = True
    thread = threading.Thread(target=runner.run, args=(claimed(runner),))
    thread.start()
    assert the_hub.has_stalled.wait(120)
    return thread


def end(thread: threading.Thread) -> None:
    thread.join(60)
    assert not thread.is_alive()


def test_a_merged_model_is_pushed_whole_in_one_commit(
    the_hub: WritableHub,
    runner: ExportRunner,
    push: Callable[..., str],
    database: Database,
    store: ArtifactStore,
    export_settings: Settings,
) -> None:
    export_id = push(content="merged")

    runner.run(claimed(runner))

    row = row_of(database, export_id)
    assert (row.state, row.error, row.url) == ("succeeded", None, f"{the_hub.url}/{REPOSITORY}")
    [commit] = the_hub.commits
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(commit)
    assert the_hub.private[REPOSITORY]
    assert (row.files, store.list_files("exports")) == ([], [])
    log = (export_settings.data_dir / "logs" / "exports.log").read_text()
    assert WRITER not in log
    assert SIGNATURE not in log


@pytest.mark.parametrize(("token", "code"), [(READER, "hub_refused"), (WRITER, "hub_repository_exists")])
def test_errors_that_can_be_known_early_come_before_anything_is_written(
    the_hub: WritableHub,
    runner: ExportRunner,
    push: Callable[..., str],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    code: str,
) -> None:
    the_hub.repositories[REPOSITORY] = {"README.md": b"someone's"}
    monkeypatch.setenv("HF_TOKEN", token)
    export_id = push()

    runner.run(claimed(runner))

    row = row_of(database, export_id)
    assert (row.state, code_of(row), row.phase, row.agreement) == ("failed", code, None, None)
    assert the_hub.repositories[REPOSITORY] == {"README.md": b"someone's"}


def test_a_push_that_is_cancelled_leaves_no_repository(
    the_hub: WritableHub, runner: ExportRunner, push: Callable[..., str], database: Database
) -> None:
    export_id = push()
    running = run_until_upload(runner, the_hub)

    with database.transaction() as session:
        export_records.cancel(session, export_id)
    end(running)

    assert row_of(database, export_id).state == "cancelled"
    assert (the_hub.repositories, the_hub.commits) == ({}, [])


def test_a_worker_that_stops_during_a_push_leaves_no_repository_and_hands_the_export_back(
    the_hub: WritableHub,
    runner: ExportRunner,
    push: Callable[..., str],
    database: Database,
    stop: threading.Event,
) -> None:
    export_id = push()
    running = run_until_upload(runner, the_hub)

    stop.set()
    end(running)

    row = row_of(database, export_id)
    assert (row.state, row.error, row.attempts) == ("queued", None, 0)
    assert (the_hub.repositories, the_hub.commits) == ({}, [])


def test_a_push_that_is_killed_is_made_by_the_next_attempt(
    the_hub: WritableHub, runner: ExportRunner, push: Callable[..., str], database: Database
) -> None:
    export_id = push()
    running = run_until_upload(runner, the_hub)
    os.kill(child().pid, signal.SIGKILL)
    end(running)
    assert (row_of(database, export_id).state, the_hub.commits) == ("queued", [])

    the_hub.stalls_uploads = False
    runner.run(claimed(runner))

    row = row_of(database, export_id)
    assert (row.state, row.error) == ("succeeded", None)
    assert len(the_hub.commits) == 1
    assert "adapter_model.safetensors" in the_hub.repositories[REPOSITORY]


def test_a_push_of_a_job_has_its_branch_and_tags_and_is_an_event_of_the_job(
    the_hub: WritableHub, runner: ExportRunner, push: Callable[..., str], database: Database
) -> None:
    export_id = push(revision="try/2", tags=["support", "tunesmith"])
    with database.transaction() as session:
        job_id = make_job(session).id
        export_records.get(session, export_id).job_id = job_id

    runner.run(claimed(runner))

    row = row_of(database, export_id)
    assert (row.state, row.error, row.url) == ("succeeded", None, f"{the_hub.url}/{REPOSITORY}/tree/try%2F2")
    assert (the_hub.branches, the_hub.revisions) == (["try/2"], ["try/2"])
    card = the_hub.repositories[REPOSITORY]["README.md"].decode()
    assert card.count("- support\n") == card.count("- tunesmith\n") == 1
    with database.snapshot() as session:
        [entry] = events.read(session, job_id, types=["log"])
    assert row.url in str(entry.data)
