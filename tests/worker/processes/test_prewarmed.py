"""A process that waits for the next job: handed out, lost, not wanted; and when it is started."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.core.jobs import records as job_records
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.waiting import wait_for
from tests.worker.runners.job_runs import job_of, make_runner
from tests.worker.runners.test_jobs import running, wait_for_step
from worker.processes.child_process import ChildProcess
from worker.processes.prewarmed import PrewarmedTrainer, remove_leftovers
from worker.processes.reports import Advanced, Report, Waiting, report_adapter
from worker.runners.jobs import JobRunner

PATIENT = "tests.scripted.patient_child"
SCRIPTED = "tests.scripted.training"
REQUEST = Advanced(step=7)


@pytest.fixture
def wanting(settings: Settings) -> Settings:
    return settings.model_copy(update={"training_standby": True, "cancel_grace_seconds": 0.5})


@pytest.fixture
def prewarmed(wanting: Settings) -> Iterator[PrewarmedTrainer]:
    prewarmed = PrewarmedTrainer(wanting, "worker", module=PATIENT)
    yield prewarmed
    prewarmed.close()


@pytest.fixture
def next_runs(wanting: Settings) -> Iterator[PrewarmedTrainer]:
    prewarmed = PrewarmedTrainer(wanting, "worker", module=SCRIPTED)
    yield prewarmed
    prewarmed.close()


@pytest.fixture
def runner(
    wanting: Settings, database: Database, store: ArtifactStore, next_runs: PrewarmedTrainer
) -> JobRunner:
    return make_runner(wanting, database, store, next_runs)


def the_waiting(module: str) -> psutil.Process:
    # A process that has just been started may have no command line for an instant.
    [process] = wait_for(lambda: find_children(module), f"a process of {module}")
    return process


def kill(process: psutil.Process) -> None:
    """Kill it with SIGKILL, as the system does when memory runs out."""
    process.kill()
    wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE, "its death")


def read_to_end(child: ChildProcess) -> list[Report]:
    reports = []
    while (line := child.reports.get(timeout=60)) is not None:
        reports.append(report_adapter.validate_json(line))
    child.wait()
    child.close()
    return reports


def test_the_process_that_waits_gets_the_request_and_its_log_goes_on(
    prewarmed: PrewarmedTrainer, tmp_path: Path
) -> None:
    prewarmed.prepare()
    waiting = the_waiting(PATIENT)

    child = prewarmed.start(REQUEST, tmp_path / "job" / "log")

    assert child.pid == waiting.pid
    assert read_to_end(child) == [Waiting(), REQUEST]
    assert (tmp_path / "job" / "log").read_text() == "imported\nbegan\n"
    assert child.log_tail() == "imported\nbegan\n"


def test_where_none_waits_a_new_process_gets_the_request(prewarmed: PrewarmedTrainer, tmp_path: Path) -> None:
    child = prewarmed.start(REQUEST, tmp_path / "log")

    assert read_to_end(child) == [Waiting(), REQUEST]
    assert child.log_tail() == "imported\nbegan\n"


def test_a_process_that_sees_another_gpu_waits_on_for_a_job_of_its_own(
    prewarmed: PrewarmedTrainer, tmp_path: Path
) -> None:
    first, second = ({"CUDA_VISIBLE_DEVICES": name} for name in ("GPU-0", "GPU-1"))
    prewarmed.prepare(second)
    waiting = the_waiting(PATIENT)
    assert waiting.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-1"

    other = prewarmed.start(REQUEST, tmp_path / "other", environment=first)
    assert other.pid != waiting.pid
    assert read_to_end(other) == [Waiting(), REQUEST]

    child = prewarmed.start(REQUEST, tmp_path / "log", environment=second)
    assert child.pid == waiting.pid
    assert read_to_end(child) == [Waiting(), REQUEST]


def test_one_process_waits_however_often_it_is_asked_for(prewarmed: PrewarmedTrainer, tmp_path: Path) -> None:
    for _ in range(3):
        prewarmed.prepare()
    first = the_waiting(PATIENT)

    read_to_end(prewarmed.start(REQUEST, tmp_path / "log"))
    prewarmed.prepare()

    assert the_waiting(PATIENT).pid != first.pid


def test_a_process_that_was_killed_while_it_waited_is_not_used(
    prewarmed: PrewarmedTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prewarmed.prepare()
    waiting = the_waiting(PATIENT)
    kill(waiting)
    prewarmed.prepare()  # would be killed too, perhaps: another one only comes after the next job

    child = prewarmed.start(REQUEST, tmp_path / "log")

    assert child.pid != waiting.pid
    assert read_to_end(child) == [Waiting(), REQUEST]
    assert "The process that waited for a job ended with status -9" in caplog.text


def test_a_process_whose_log_is_lost_is_not_used(
    prewarmed: PrewarmedTrainer, wanting: Settings, tmp_path: Path
) -> None:
    prewarmed.prepare()
    waiting = the_waiting(PATIENT)
    wanting.job_folder("standby-worker.log").unlink()

    child = prewarmed.start(REQUEST, tmp_path / "log")

    assert child.pid != waiting.pid
    assert not waiting.is_running()
    assert read_to_end(child) == [Waiting(), REQUEST]


def test_where_none_can_be_started_a_job_does_without(
    prewarmed: PrewarmedTrainer, wanting: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanting.job_folder("any").parent.write_text("a file where a folder should be")

    prewarmed.prepare()

    assert "No process waits for the next job" in caplog.text
    assert read_to_end(prewarmed.start(REQUEST, tmp_path / "log")) == [Waiting(), REQUEST]


def test_none_waits_where_the_setting_says_so(settings: Settings, tmp_path: Path) -> None:
    prewarmed = PrewarmedTrainer(settings, "worker", module=PATIENT)

    prewarmed.prepare()

    assert find_children(PATIENT) == []
    assert read_to_end(prewarmed.start(REQUEST, tmp_path / "log")) == [Waiting(), REQUEST]


def test_closing_ends_the_process_for_good_and_leaves_no_log(
    prewarmed: PrewarmedTrainer, wanting: Settings
) -> None:
    prewarmed.prepare()

    prewarmed.close()
    prewarmed.prepare()

    assert find_children(PATIENT) == []
    assert list(wanting.job_folder("any").parent.iterdir()) == []


def test_a_process_that_waits_dies_without_its_worker(tmp_path: Path) -> None:
    child = ChildProcess(PATIENT, None, tmp_path / "log")

    child.close()

    assert child.wait(60) == 1
    assert child.log_tail() == "imported\n"


def test_logs_that_killed_workers_left_are_removed(wanting: Settings) -> None:
    logs = [wanting.job_folder(f"standby-{name}.log") for name in ("killed", "alive")]
    logs[0].parent.mkdir()
    for log in logs:
        log.touch()

    remove_leftovers(wanting, lambda worker_id: worker_id == "killed")

    assert [log.exists() for log in logs] == [False, True]


def test_the_next_process_is_started_when_a_job_has_made_a_step_and_the_next_job_gets_it(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        [own, waiting] = wait_for(
            lambda: found if len(found := find_children(SCRIPTED)) == 2 else None, "a process that waits"
        )
        with database.transaction() as session:
            job_records.request_cancel(session, lease.job_id)
    assert waiting.create_time() >= own.create_time()

    second = claimed("finishes")
    runner.run(second)

    assert job_of(database, second).state == "succeeded"
    assert waiting.pid not in [process.pid for process in find_children(SCRIPTED)]
    assert not waiting.is_running()


def test_a_job_that_makes_no_step_is_not_disturbed_by_the_next_process(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("dies-before-its-first-step")

    runner.run(lease)

    assert [attempt.exit_reason for attempt in job_of(database, lease).attempts] == ["process_died"]
    assert find_children(SCRIPTED) == []


def test_a_job_succeeds_at_once_where_the_process_that_waited_for_it_was_killed(
    runner: JobRunner, next_runs: PrewarmedTrainer, claimed: Callable[[str], JobLease], database: Database
) -> None:
    next_runs.prepare()
    kill(the_waiting(SCRIPTED))
    lease = claimed("finishes")

    runner.run(lease)

    assert [attempt.exit_reason for attempt in job_of(database, lease).attempts] == ["succeeded"]


def test_what_a_process_that_waited_prints_is_in_the_log_of_its_attempt(
    runner: JobRunner, next_runs: PrewarmedTrainer, claimed: Callable[[str], JobLease], wanting: Settings
) -> None:
    next_runs.prepare()
    lease = claimed("dies")

    runner.run(lease)

    assert "about to die" in (wanting.job_folder(lease.job_id) / "attempt-1.log").read_text()
