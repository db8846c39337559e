"""Runs in MLflow's local store, in trackio's local mode and in W&B's offline files, written and read back."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.jobs import events, queue
from app.core.jobs.events import Evaluation, FinalEvaluation, Metrics, Warn
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.worker.trackers.reading import read_mlflow, read_trackio, read_wandb
from tests.worker.trackers.recording import events_of, metrics, record, succeed, wait_for_runs
from worker.trackers.followers import Followers

ALL = ["wandb", "mlflow", "trackio"]
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def local_trackers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


@pytest.fixture
def followers(settings: Settings, database: Database, local_trackers: None) -> Iterator[Followers]:
    made = Followers(settings, database)
    yield made
    made.close()


def expected(database: Database, lease: JobLease) -> dict[tuple[str, int], float]:
    """The losses, learning rates and rewards of the job's events."""
    with database.snapshot() as session:
        found = [event.data for event in events.read(session, lease.job_id, limit=1000)]
    values = {}
    for entry in found:
        if isinstance(entry, Metrics):
            values |= {("train/loss", entry.step): entry.loss, ("train/num_tokens", entry.step): entry.tokens}
            values[("train/learning_rate", entry.step)] = entry.learning_rate or 0.0
        if isinstance(entry, Evaluation):
            values[("eval/loss", entry.step)] = entry.loss
        if isinstance(entry, Metrics | Evaluation) and entry.reward_margin is not None:
            prefix = "train" if isinstance(entry, Metrics) else "eval"
            values[(f"{prefix}/reward_margin", entry.step)] = entry.reward_margin
        if isinstance(entry, FinalEvaluation):
            values[("final/adapter_loss", entry.step)] = entry.adapter_loss
    return values


def test_a_resumed_job_goes_on_with_the_same_run_in_every_tracker(
    followers: Followers,
    claimed: Callable[..., JobLease],
    database: Database,
    settings: Settings,
    tmp_path: Path,
) -> None:
    names = {"project": "support", "run_name": "first try", "tags": ["small"]}
    first = claimed("helper", report_to=ALL, tracking=names)
    followers.follow(first)
    followers.follow(first)  # as where the artifact store was away when the job began
    record(
        database, first, metrics(1, reward_margin=0.25), Evaluation(step=1, epoch=0.2, loss=1.9), metrics(2)
    )
    wait_for_runs(database, first, lambda run: run.points == 3)
    # What counts as delivered would outlive a kill of the trackers' processes.
    delivered = {key: value for key, value in expected(database, first).items() if value is not None}
    assert delivered.items() <= read_wandb(settings.job_folder(first.job_id))[0].items()
    assert delivered.items() <= read_trackio(tmp_path / "trackio" / "support.db")[0].items()
    with database.transaction() as session:
        queue.give_up_attempt(session, first, WorkFailure("process_died", "Died."), max_lost_attempts=3)
        second = queue.claim(session, "worker", lease_seconds=30)
    assert second is not None
    followers.follow(second)
    # It resumes from the checkpoint of step 1 and repeats step 2.
    final = FinalEvaluation(step=3, epoch=1, seconds=1, held_out=1, base_loss=2, adapter_loss=1, rows=[])
    evaluation = Evaluation(step=3, epoch=1, loss=1.5, reward_margin=0.75)
    record(database, second, metrics(2), metrics(3, loss=float("nan")), evaluation, final)
    succeed(database, second)
    wait_for_runs(database, second, lambda run: run.is_complete)

    values = {key: value for key, value in expected(database, second).items() if value == value}
    wandb_values, wandb_records = read_wandb(settings.job_folder(first.job_id))
    mlflow_values, [mlflow_run] = read_mlflow(os.environ["MLFLOW_TRACKING_URI"], "support")
    trackio_values, trackio_runs = read_trackio(tmp_path / "trackio" / "support.db")
    for found in (wandb_values, mlflow_values, trackio_values):
        assert values.items() <= found.items()
        assert ("train/loss", 3) not in found
    run_records = [record.run for record in wandb_records if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.display_name) for run in run_records} == {
        (first.job_id, "support", "first try")
    }
    assert (mlflow_run.info.run_name, mlflow_run.info.status) == ("first try", "FINISHED")
    assert mlflow_run.data.params["lora.r"] == "64"
    assert mlflow_run.data.tags["tunesmith.job"] == first.job_id
    assert trackio_runs == ["first try"]
    written = b"".join(everything_written(tmp_path))
    assert b"tracked_runs" in written
    assert b"train/loss" in written
    assert KEY.encode() not in written


def everything_written(folder: Path) -> Iterator[bytes]:
    """Every file: the database with events and specs, logs, and the trackers' own."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return (path.read_bytes() for path in paths)


def test_a_server_that_refuses_is_told_without_its_keys(
    settings: Settings, database: Database, claimed: Callable[..., JobLease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame@127.0.0.1:9/")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    followers = Followers(settings, database)
    lease = claimed("helper", report_to=["mlflow"])
    followers.follow(lease)
    wait_for_runs(database, lease, lambda run: run.problem)
    followers.close()
    [warning] = events_of(database, lease, "warning")
    assert isinstance(warning.data, Warn)
    assert warning.data.message.startswith("MLflow can't be written: API request to http://[secret]@127")
    written = b"".join(everything_written(settings.data_dir))
    assert b"sesame" not in written
    assert b"127.0.0.1" in written
