"""What a worker does for the jobs of other workers of its host."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.core.engine import workers
from app.core.engine.devices import WorkerDevice
from app.core.engine.state import EngineState
from app.core.engine.workers import WorkerReport
from app.core.jobs import queue
from app.core.settings import Settings
from app.core.storage.database import Database
from tests.factories import make_job
from worker.runners import host_jobs
from worker.runners.host_jobs import HostJobs, wait_for_others

OWN, NEIGHBOUR, CONTAINER = "box-1-aaaaaa", "box-2-bbbbbb", "other-3-cccccc"
FIRST, SECOND = (
    WorkerDevice(kind="cuda", name="GPU", index=place, uuid=f"GPU-{place}", memory_bytes=1 << 30)
    for place in range(2)
)
CPU = WorkerDevice(kind="cpu", name="CPU", memory_bytes=1 << 30)


class Reservations:
    """The jobs that devices are reserved for, and all that began and ended, in order."""

    def __init__(self) -> None:
        self.held: list[tuple[str, str]] = []
        self.changes: list[tuple[str, str]] = []

    @contextmanager
    def reserve(self, device: str, job_id: str) -> Iterator[bool]:
        self.held.append((device, job_id))
        self.changes.append(("begins", job_id))
        yield True
        self.held.remove((device, job_id))
        self.changes.append(("ends", job_id))


def claim(database: Database, worker_id: str) -> queue.JobLease:
    with database.transaction() as session:
        make_job(session)
        lease = queue.claim(session, worker_id, lease_seconds=60)
        assert lease is not None
        return lease


def report(database: Database, worker_id: str, *devices: WorkerDevice, job_id: str | None = None) -> None:
    trains = [device.model_copy(update={"job": job_id}) for device in devices]
    with database.transaction() as session:
        workers.heartbeat(session, WorkerReport(worker_id, ["train"], devices=trains))


@pytest.mark.parametrize(
    ("worker_id", "device", "is_shared"),
    [(NEIGHBOUR, FIRST, True), (CONTAINER, FIRST, True), (NEIGHBOUR, SECOND, False), (OWN, FIRST, False)],
    ids=["on the device", "of a container with a name of its own", "on another device", "of this worker"],
)
def test_a_device_is_reserved_for_the_job_of_another_worker_on_it_while_it_runs(
    database: Database, worker_id: str, device: WorkerDevice, is_shared: bool
) -> None:
    reservations = Reservations()
    jobs = HostJobs(database, {OWN}, {"GPU-0"}, reservations.reserve, threading.Event())
    lease = claim(database, worker_id)
    jobs.look()
    assert reservations.held == []  # it is not known yet where the job is

    report(database, worker_id, device, job_id=lease.job_id)
    jobs.look()
    jobs.look()
    assert reservations.held == ([("GPU-0", lease.job_id)] if is_shared else [])

    with database.transaction() as session:
        queue.release(session, lease, reason="handed back")
    jobs.look()
    assert reservations.held == []


def test_between_two_jobs_on_a_device_its_engine_does_not_go_on(database: Database) -> None:
    reservations = Reservations()
    jobs = HostJobs(database, {OWN}, {"GPU-0"}, reservations.reserve, threading.Event())
    first = claim(database, NEIGHBOUR)
    report(database, NEIGHBOUR, FIRST, job_id=first.job_id)
    jobs.look()
    second = claim(database, CONTAINER)
    report(database, CONTAINER, FIRST, job_id=second.job_id)
    with database.transaction() as session:
        queue.release(session, first, reason="handed back")
    jobs.look()
    began = [("begins", first.job_id), ("begins", second.job_id)]
    assert reservations.changes == [*began, ("ends", first.job_id)]


def serve(database: Database, worker_id: str, device: WorkerDevice, state: EngineState | None) -> None:
    report = WorkerReport(
        worker_id,
        ["serve"],
        device=device.model_dump(mode="json"),
        engine_url="http://127.0.0.1:1",
        engine_state=state,
    )
    with database.transaction() as session:
        workers.heartbeat(session, report)


@pytest.mark.parametrize(("device", "name"), [(FIRST, "GPU-0"), (CPU, "box/cpu/0")], ids=["GPU", "CPU"])
def test_a_job_waits_until_the_other_engines_on_its_device_have_left_it(
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    device: WorkerDevice,
    name: str,
) -> None:
    def wait() -> bool | None:
        return wait_for_others(
            database, settings, threading.Event(), job_id="job_1", devices={name}, own_ids={OWN}
        )

    serve(database, OWN, device, EngineState())
    serve(database, "box-4-dddddd", SECOND, EngineState())
    serve(database, "box-5-eeeeee", device, EngineState(is_external=True))
    assert wait() is None

    # It has left the device to an earlier job, which may have ended.
    serve(database, NEIGHBOUR, device, EngineState(paused_by="job_0"))
    with monkeypatch.context() as no_patience:
        no_patience.setattr(host_jobs, "_WAIT_SECONDS", 0.0)
        assert wait() is False
    found: list[bool | None] = []
    waiting = threading.Thread(target=lambda: found.append(wait()))
    waiting.start()
    serve(database, NEIGHBOUR, device, EngineState(paused_by="job_1"))
    waiting.join(30)
    assert found == [True]

    serve(database, NEIGHBOUR, device, EngineState(shares_with="job_1"))
    assert wait() is False
