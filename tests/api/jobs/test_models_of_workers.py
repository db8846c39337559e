"""Base models that only some workers have: they can be named, and jobs on them wait for such a worker."""

import json

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.engine import base_models, workers
from app.core.engine.base_models import LocalModel
from app.core.engine.workers import WorkerReport
from app.core.exports.queue import ExportingWorker, ExportQueue
from app.core.jobs import queue
from app.core.jobs.placement import Host
from app.core.storage import tables
from tests.factories import make_adapter, make_dataset

_MODEL = LocalModel(name="big-model", architecture=None, context_length=512, size_bytes=7, obstacle=None)


@pytest.fixture
def dataset_id(services: Services) -> str:
    with services.database.transaction() as session:
        return make_dataset(session, services.store, services.settings.data_dir).id


def _beat(services: Services, name: str, *folders: LocalModel) -> None:
    report = WorkerReport(name, ["train"], folders=list(folders))
    with services.database.transaction() as session:
        workers.heartbeat(session, report)


def test_a_model_of_a_worker_is_listed_and_may_be_named(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    body = {"base_model": "big-model", "dataset": dataset_id}
    assert client.post("/jobs", json=body).json()["error"]["code"] == "model_unknown"
    _beat(services, "worker-1", _MODEL)
    listed = {model["name"]: model for model in client.get("/models").json()["data"]}
    assert listed["big-model"]["context_length"] == 512
    assert client.get("/v1/models/big-model").json()["owned_by"] == "local"
    made = client.post("/jobs", json=body)
    assert (made.status_code, made.json()["waiting_for"]) == (202, None)


def test_a_job_waits_for_a_worker_that_has_its_model(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    _beat(services, "worker-1", _MODEL)
    first = client.post("/jobs", json={"base_model": "big-model", "dataset": dataset_id}).json()["id"]
    second = client.post("/jobs", json={"base_model": "owner/any", "dataset": dataset_id}).json()["id"]
    with services.database.transaction() as session:
        workers.leave(session, "worker-1")
    _beat(services, "worker-2")
    words = "a worker with big-model in its models folder"
    assert client.get(f"/jobs/{first}").json()["waiting_for"] == words
    assert [job["waiting_for"] for job in client.get("/jobs").json()["data"]] == [None, words]
    with services.database.transaction() as session:
        lease = queue.claim(
            session, "worker-2", lease_seconds=30, host=Host("worker-2", 1, 1, ["small-model"], [])
        )
        assert lease is not None
        assert lease.job_id == second
        assert (
            queue.claim(
                session, "worker-2", lease_seconds=30, host=Host("worker-2", 1, 1, ["small-model"], [])
            )
            is None
        )
        lease = queue.claim(
            session, "worker-1", lease_seconds=30, host=Host("worker-1", 1, 1, ["big-model"], [])
        )
        assert lease is not None
        assert lease.job_id == first
    assert client.get(f"/jobs/{first}").json()["waiting_for"] is None


def test_an_export_waits_for_a_worker_that_has_its_model(client: TestClient, services: Services) -> None:
    with services.database.transaction() as session:
        make_adapter(session, base_model="big-model")
    assert client.post("/adapters/helper/exports", json={"format": "merged"}).status_code == 202
    with services.database.transaction() as session:
        for models, found in ([], False), (["big-model"], True):
            worker = ExportingWorker(lambda models=models: models, lambda: True, 30)  # type: ignore[misc]
            lease = ExportQueue(worker).claim(session, lease_seconds=30, max_attempts=3)
            assert (lease is not None) is found


def test_a_worker_reports_the_models_of_its_folder(services: Services) -> None:
    folder = services.settings.models_folder / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    _beat(services, "worker-1", *base_models.find_local(services.settings))
    with services.database.snapshot() as session:
        row = session.get(tables.WorkerRow, "worker-1")
        assert row is not None
        assert [model["name"] for model in row.model_folders] == ["mine"]
        assert row.model_folders[0]["architecture"] == "LlamaForCausalLM"
    assert base_models.find_names(services.settings) == ["mine"]
