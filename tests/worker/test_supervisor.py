"""Whole worker processes on one database: two at once, killed, stopped, with an engine that dies."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.jobs import records as job_records
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.factories import make_dataset, make_job
from tests.waiting import wait_for

Start = Callable[..., subprocess.Popen[bytes]]
TRAINING = "tests.scripted.training"


@pytest.fixture
def start_worker(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {
        "TUNESMITH_DATA_DIR": str(settings.data_dir),
        "TUNESMITH_LEASE_SECONDS": "3",
        "TUNESMITH_GPU_POLICY": "pause_serving",
    }

    def start(*arguments: str, prewarmed: bool = False) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.scripted.worker", *arguments]
        own = environment | {"TUNESMITH_TRAINING_STANDBY": str(prewarmed)}
        with (tmp_path / "worker.log").open("ab") as log:
            process = subprocess.Popen(command, env=own, stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def submit(settings: Settings, database: Database, tmp_path: Path) -> Callable[..., list[str]]:
    def submit_jobs(script: str, count: int = 1) -> list[str]:
        with database.transaction() as session:
            dataset = make_dataset(session, ArtifactStore(settings.artifacts_url), tmp_path)
            return [make_job(session, name=script, dataset=dataset.id).id for _ in range(count)]

    return submit_jobs


def job(database: Database, job_id: str) -> tables.JobRow:
    with database.snapshot() as session:
        return job_records.get(session, job_id)


def wait_for_state(database: Database, job_id: str, state: str) -> tables.JobRow:
    return wait_for(
        lambda: found if (found := job(database, job_id)).state == state else None, f"{job_id} to be {state}"
    )


def wait_for_step(database: Database, job_id: str) -> None:
    wait_for(lambda: job(database, job_id).step, "a first step")


def test_two_workers_share_the_queue_and_run_no_job_twice(
    start_worker: Start, submit: Callable[..., list[str]], database: Database
) -> None:
    job_ids = submit("finishes", 10)
    start_worker()
    start_worker()
    ended = [wait_for_state(database, job_id, "succeeded") for job_id in job_ids]
    assert [len(found.attempts) for found in ended] == [1] * 10
    assert len({found.attempts[0].worker_id for found in ended}) == 2


def test_a_killed_worker_takes_its_child_along_and_its_job_is_run_again(
    start_worker: Start, submit: Callable[..., list[str]], database: Database
) -> None:
    [job_id] = submit("waits-once")
    first = start_worker()
    wait_for_step(database, job_id)
    [child] = find_children(TRAINING, of=first.pid)
    first.kill()
    child.wait(30)
    start_worker()
    found = wait_for_state(database, job_id, "succeeded")
    assert [attempt.exit_reason for attempt in found.attempts] == ["worker_lost", "succeeded"]


def test_the_rows_of_this_hosts_dead_workers_are_forgotten(start_worker: Start, database: Database) -> None:
    def ids() -> set[str]:
        with database.snapshot() as session:
            return {worker.id for worker in workers.find_alive(session, lease_seconds=1000)}

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    dead, alive, elsewhere = (
        f"{host}-{ended.pid}-aaaaaa",
        f"{host}-{os.getpid()}-bbbbbb",
        "other-host-1-cccccc",
    )
    # However long a worker takes to start, they still look alive by then.
    soon = datetime.now(UTC) + timedelta(minutes=5)
    with database.transaction() as session:
        for worker_id in (dead, alive, elsewhere):
            workers.heartbeat(session, WorkerReport(worker_id, ["serve"]), now=soon)
    start_worker()
    wait_for(lambda: dead not in ids(), "the dead worker to be forgotten")
    assert {alive, elsewhere} <= ids()


def test_sigterm_requeues_the_job_and_exits_0(
    start_worker: Start, submit: Callable[..., list[str]], database: Database
) -> None:
    [job_id] = submit("waits")
    worker = start_worker()
    wait_for_step(database, job_id)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    found = job(database, job_id)
    assert (found.state, found.attempts[0].exit_reason) == ("queued", "handed_back")
    with database.snapshot() as session:
        assert workers.find_alive(session, lease_seconds=1000) == []


def find_waiting(worker: subprocess.Popen[bytes]) -> psutil.Process | None:
    return next(iter(find_children(TRAINING, of=worker.pid)), None)


def test_a_process_waits_where_there_is_no_job_and_the_next_one_gets_it(
    start_worker: Start, submit: Callable[..., list[str]], database: Database, settings: Settings
) -> None:
    worker = start_worker("--serve", prewarmed=True)
    waiting = wait_for(lambda: find_waiting(worker), "a process that waits")
    [job_id] = submit("waits")
    wait_for_step(database, job_id)
    wait_for(lambda: len(find_children(TRAINING, of=worker.pid)) == 2, "the one for the job after it")
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)
    wait_for_state(database, job_id, "cancelled")
    assert not waiting.is_running()
    [after_it] = find_children(TRAINING, of=worker.pid)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert not after_it.is_running()
    assert list(settings.job_folder("any").parent.glob("standby-*")) == []


def test_a_killed_worker_takes_the_process_that_waits_along(start_worker: Start, settings: Settings) -> None:
    def logs() -> list[str]:
        return [path.name for path in settings.job_folder("any").parent.glob("standby-*")]

    first = start_worker(prewarmed=True)
    waiting = wait_for(lambda: find_waiting(first), "a process that waits")
    first.kill()
    first.wait()
    waiting.wait(30)
    [left] = logs()
    second = start_worker(prewarmed=True)
    wait_for(lambda: find_waiting(second), "another one")
    assert left not in logs()
    assert len(logs()) == 1


def test_the_engine_is_advertised_paused_while_a_job_runs_and_restarted_when_it_dies(
    start_worker: Start, submit: Callable[..., list[str]], database: Database
) -> None:
    def engine(paused_by: str | None = None) -> tables.WorkerRow | None:
        with database.snapshot() as session:
            alive = workers.find_alive(session, lease_seconds=1000, role="serve")
        up = [row for row in alive if row.engine_url and row.engine_state]
        return next((row for row in up if (row.engine_state or {})["paused_by"] == paused_by), None)

    worker = start_worker("--serve")
    before = wait_for(engine, "the engine").engine_url
    [job_id] = submit("waits")
    wait_for(lambda: engine(job_id), "serving to pause")
    [child] = find_children("tests.scripted.engine", of=worker.pid)
    child.kill()
    again = wait_for(
        lambda: row if (row := engine(job_id)) and row.engine_url != before else None, "a new engine"
    )
    assert again.engine_state is not None
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)
    wait_for(engine, "serving to go on")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0


def test_what_the_examination_finds_wrong_is_in_the_worker_s_row(
    start_worker: Start, database: Database
) -> None:
    def problems() -> list[str]:
        with database.snapshot() as session:
            return [
                problem for row in workers.find_alive(session, lease_seconds=1000) for problem in row.problems
            ]

    worker = start_worker("--broken")
    assert wait_for(problems, "the examination") == ["GPU: none."]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
