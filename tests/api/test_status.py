from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.core.engine import workers
from app.core.engine.devices import DeviceState, WorkerDevice
from app.core.engine.workers import WorkerReport
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.main import create_app
from tests.factories import make_adapter, make_dataset, make_job


def test_an_empty_box_shows_its_versions_and_disks(client: TestClient, settings: Settings) -> None:
    status = client.get("/status").json()
    assert status["versions"]["database"] == "sqlite"
    assert status["workers"] == []
    assert set(status["queue"]["by_state"].values()) == {0}
    assert status["queue"]["oldest_queued_at"] is None
    # There is no models folder yet.
    assert [(disk["folder"], disk["path"]) for disk in status["disks"]] == [("data", str(settings.data_dir))]
    assert 0 < status["disks"][0]["free_bytes"] <= status["disks"][0]["total_bytes"]


def test_jobs_datasets_and_adapters_are_counted(
    client: TestClient, database: Database, settings: Settings
) -> None:
    with database.transaction() as session:
        dataset = make_dataset(session, ArtifactStore(settings.artifacts_url), settings.data_dir)
        size = dataset.size_bytes
        make_adapter(session, size_bytes=12)
        make_adapter(session, id="ad_1", name="other", size_bytes=30)
        make_job(session)
    status = client.get("/status").json()
    assert status["datasets"] == {"count": 1, "size_bytes": size}
    assert status["adapters"] == {"count": 2, "size_bytes": 42}
    assert status["queue"]["by_state"]["queued"] == 1
    assert status["queue"]["oldest_queued_at"]


def test_workers_are_shown_without_the_engine_s_token(client: TestClient, database: Database) -> None:
    device = {"kind": "cpu", "name": "CPU", "memory_bytes": 8, "free_bytes": 3}
    report = WorkerReport("worker-1", ["train"], device=device, engine_token="secret")
    with database.transaction() as session:
        workers.heartbeat(session, report)
    answer = client.get("/status")
    assert answer.json()["workers"][0]["device"] == device
    assert "secret" not in answer.text


def test_every_device_is_shown_with_what_it_does(client: TestClient, database: Database) -> None:
    devices = [
        WorkerDevice(
            kind="cuda", name="H200", index=0, uuid="GPU-a", memory_bytes=8, state=DeviceState.SERVING
        ),
        WorkerDevice(
            kind="cuda",
            name="H200",
            index=1,
            uuid="GPU-b",
            memory_bytes=8,
            state=DeviceState.TRAINING,
            job="job_1",
        ),
    ]
    with database.transaction() as session:
        workers.heartbeat(
            session, WorkerReport("worker-1", ["train"], devices=devices, engine_token="secret")
        )
    answer = client.get("/workers")
    [worker] = answer.json()["data"]
    shown = [(device["uuid"], device["state"], device["job"]) for device in worker["devices"]]
    assert shown == [("GPU-a", "serving", None), ("GPU-b", "training", "job_1")]
    assert "secret" not in answer.text


def test_it_needs_a_key_where_there_is_one(settings: Settings) -> None:
    settings.api_key = SecretStr("open sesame")
    with TestClient(create_app(settings)) as client:
        assert client.get("/status").status_code == 401
