"""Trackers in a job's spec, and the runs that a job shows."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.jobs import queue, tracking
from app.core.specs.tracking import Tracker


def submit(client: TestClient, dataset: str, **fields: Any) -> Any:
    return client.post("/jobs", json={"base_model": "owner/model", "dataset": dataset, **fields})


def start_worker(services: Services, *trackers: Tracker) -> None:
    with services.database.transaction() as session:
        workers.heartbeat(session, WorkerReport("worker-1", ["train"], trackers=list(trackers)))


def test_a_job_names_its_trackers_and_its_run(client: TestClient, dataset: str, services: Services) -> None:
    start_worker(services, Tracker.TENSORBOARD, Tracker.MLFLOW)
    names = {"project": "support", "run_name": "first try", "entity": None, "tags": ["a b"]}
    job = submit(client, dataset, report_to=["mlflow"], tracking=names).json()
    assert (job["spec"]["report_to"], job["spec"]["tracking"]) == (["mlflow"], names)
    assert job["tracked_runs"] == []
    assert submit(client, dataset).json()["spec"]["report_to"] == ["tensorboard"]
    [worker] = client.get("/ready").json()["workers"]
    assert worker["trackers"] == ["tensorboard", "mlflow"]


def test_a_job_shows_its_runs(client: TestClient, dataset: str, services: Services) -> None:
    job = submit(client, dataset, report_to=["mlflow"]).json()
    with services.database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
        assert lease
        run = tracking.begin(session, lease, Tracker.MLFLOW)
        tracking.record_opened(session, run, run_id="abc", url="https://mlflow/#/runs/abc")
    [shown] = client.get(f"/jobs/{job['id']}").json()["tracked_runs"]
    assert (shown["run_id"], shown["url"]) == ("abc", "https://mlflow/#/runs/abc")
    assert not shown["is_complete"]
    assert "token" not in shown


def test_a_tracker_that_no_worker_has_is_refused(
    client: TestClient, dataset: str, services: Services
) -> None:
    assert (
        submit(client, dataset, report_to=["wandb"]).status_code == 202
    )  # no worker runs, so nothing is known
    start_worker(services, Tracker.TENSORBOARD)
    error = submit(client, dataset, report_to=["wandb"]).json()["error"]
    assert error["param"] == "report_to"
    assert "tunesmith[wandb]" in error["hint"]
    assert submit(client, dataset, report_to=[]).status_code == 202


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"report_to": ["wandb", "wandb"]}, "report_to"),
        ({"report_to": ["neptune"]}, "report_to.0"),
        ({"tracking": {"project": "a/b"}}, "tracking.project"),
        ({"tracking": {"api_key": "secret"}}, "tracking.api_key"),
    ],
)
def test_what_no_tracker_takes_is_refused(
    fields: dict[str, Any], param: str, client: TestClient, dataset: str
) -> None:
    response = submit(client, dataset, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (422, param)


def test_a_deleted_job_leaves_no_run(client: TestClient, dataset: str, services: Services) -> None:
    job = submit(client, dataset, report_to=["trackio"]).json()
    with services.database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
        assert lease
        tracking.begin(session, lease, Tracker.TRACKIO)
        queue.finish_cancelled(session, lease)
    assert client.delete(f"/jobs/{job['id']}").status_code == 204
