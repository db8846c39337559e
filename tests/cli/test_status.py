from app.core.engine import workers
from app.core.engine.devices import DeviceState, WorkerDevice
from app.core.engine.workers import WorkerReport
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.factories import make_job
from tests.fakes import FakeEngine


def test_the_status_names_workers_and_what_waits(run: Run, serving: FakeEngine, database: Database) -> None:
    with database.transaction() as session:
        make_job(session)
    shown = run("status")
    assert shown.exit_code == 0, shown.stderr
    assert "0 running, 1 waiting" in shown.stdout
    assert "serve" in shown.stdout
    assert json_of(run("status", "--json"))["queue"]["by_state"]["queued"] == 1


def test_each_device_of_a_worker_has_a_line(run: Run, database: Database) -> None:
    gpu = WorkerDevice(kind="cuda", name="NVIDIA H200", memory_bytes=150 * 10**9, free_bytes=140 * 10**9)
    busy = {"index": 1, "state": DeviceState.TRAINING, "job": "job_1", "free_bytes": None}
    with database.transaction() as session:
        report = WorkerReport("host-1-aaaaaa", ["train"], devices=[gpu, gpu.model_copy(update=busy)])
        workers.heartbeat(session, report)
    lines = [" ".join(line.split()) for line in run("status").stdout.splitlines()]
    assert "GPU 0 NVIDIA H200, 140.0 GB of 150.0 GB free, free" in lines
    assert "GPU 1 NVIDIA H200, training job_1" in lines


def test_a_missing_worker_is_said(run: Run) -> None:
    assert "No worker is alive" in run("status").stderr
