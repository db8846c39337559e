"""A worker with a Ray cluster: what it takes, and what it says where Ray is not installed."""

import threading

import pytest

from app.core.engine.devices import WorkerDevice
from app.core.settings import Settings
from app.core.storage.database import Database
from worker import host_devices
from worker.host_devices import HostDevices
from worker.supervisor import Role, Supervisor

ADDRESS = "10.0.0.1:6379"


@pytest.fixture
def with_ray(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(host_devices, "has_ray", lambda: True)
    return settings.model_copy(update={"ray_address": ADDRESS})


def find_gpus() -> list[WorkerDevice]:
    return [WorkerDevice(kind="cuda", name="GPU", index=place, memory_bytes=1) for place in range(2)]


def make_devices(settings: Settings, database: Database, *, trains: bool) -> HostDevices:
    devices = HostDevices(
        settings,
        database,
        worker_id="here-1-aaaaaa",
        trains=trains,
        serves=False,
        clusters=True,
        on_change=lambda: None,
        stop=threading.Event(),
        probe=find_gpus,
    )
    devices.start()
    return devices


def test_one_job_over_several_hosts_runs_at_a_time_and_takes_no_device(
    with_ray: Settings, database: Database
) -> None:
    devices = make_devices(with_ray, database, trains=True)
    assert (devices.describe_host().cluster, devices.free) == (True, 2)

    devices.take("job_1", 0)

    host = devices.describe_host()
    assert (host.cluster, host.free, set(host.running)) == (False, 2, {"job_1"})
    assert devices.environment("job_1") == {"CUDA_VISIBLE_DEVICES": ""}
    devices.take("job_2", 1)
    devices.give_back("job_2")
    assert not devices.takes_cluster_jobs
    devices.give_back("job_1")
    assert devices.describe_host().cluster


def test_a_worker_of_the_cluster_alone_offers_no_device(with_ray: Settings, database: Database) -> None:
    devices = make_devices(with_ray, database, trains=False)
    host = devices.describe_host()
    assert (host.cluster, host.free, host.total) == (True, 0, 0)
    [report] = devices.report(["cluster"], [])
    assert (report.devices, report.total_gpus, report.problems) == ([], 0, [])


def test_without_ray_the_worker_names_the_problem_and_takes_no_such_job(
    with_ray: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_devices, "has_ray", lambda: False)
    devices = make_devices(with_ray, database, trains=True)
    assert not devices.describe_host().cluster
    [report] = devices.report(["train"], [])
    assert "Ray is not installed" in report.problems[0]


@pytest.mark.parametrize("installed", [True, False])
def test_a_worker_that_trains_has_the_role_with_an_address_and_ray(
    with_ray: Settings, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("worker.supervisor.has_ray", lambda: installed)
    supervisor = Supervisor(with_ray, frozenset({Role.TRAIN}), probe=find_gpus)
    assert (Role.CLUSTER in supervisor._roles) == installed
