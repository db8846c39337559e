"""A worker process with several simulated devices: jobs at once, engines, and what is said of each device."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.engine import workers
from app.core.exports import records as export_records
from app.core.jobs import events, records as job_records
from app.core.settings import Settings
from app.core.specs.export import export_spec_adapter
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_adapter, make_dataset, make_job
from tests.waiting import wait_for

Start = Callable[..., subprocess.Popen[bytes]]
Submit = Callable[..., list[str]]


@pytest.fixture
def start_worker(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        own = os.environ | {
            "TUNESMITH_DATA_DIR": str(settings.data_dir),
            "TUNESMITH_LEASE_SECONDS": "3",
            "TUNESMITH_GPU_POLICY": "pause_serving",
            **environment,
        }
        command = [sys.executable, "-m", "tests.scripted.worker", *arguments]
        with (tmp_path / "worker.log").open("ab") as log:
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def submit(settings: Settings, database: Database, tmp_path: Path) -> Submit:
    def submit_jobs(*gpus: int) -> list[str]:
        with database.transaction() as session:
            dataset = make_dataset(session, ArtifactStore(settings.artifacts_url), tmp_path)
            jobs = [
                make_job(session, name="shows-its-devices", dataset=dataset.id, resources={"gpus": count})
                for count in gpus
            ]
            return [job.id for job in jobs]

    return submit_jobs


def find_rows(database: Database) -> list[tables.WorkerRow]:
    with database.snapshot() as session:
        return workers.find_alive(session, lease_seconds=1000)


def devices(database: Database) -> list[tuple[str, str | None]]:
    """What each device of the worker that trains does, and for which job."""
    rows = [row for row in find_rows(database) if "train" in row.roles]
    return [(device["state"], device["job"]) for row in rows for device in row.devices]


def wait_for_devices(database: Database, *expected: tuple[str, str | None]) -> None:
    wait_for(lambda: devices(database) == list(expected), f"{expected}")


def seen(database: Database, job_id: str) -> str:
    """The devices that the job's process sees."""

    def find() -> str | None:
        with database.snapshot() as session:
            found: Any = events.read(session, job_id)
            return next((event.data.message for event in found if event.type == "log"), None)

    found = wait_for(find, "the devices of a job")
    assert found
    return found


def cancel(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)


def test_jobs_train_at_once_each_on_devices_of_its_own(
    start_worker: Start, submit: Submit, database: Database
) -> None:
    first, second, third = submit(1, 2, 1)
    start_worker("--gpus=3")
    assert (seen(database, first), seen(database, second)) == ("GPU-1", "GPU-0,GPU-2")
    wait_for_devices(database, ("training", second), ("training", first), ("training", second))
    cancel(database, first)
    assert seen(database, third) == "GPU-1"
    wait_for_devices(database, ("training", second), ("training", third), ("training", second))
    cancel(database, second)
    wait_for_devices(database, ("free", None), ("training", third), ("free", None))


def test_a_job_prefers_devices_that_do_not_serve_and_serving_pauses_for_the_last_one(
    start_worker: Start, submit: Submit, database: Database
) -> None:
    start_worker("--gpus=2", "--serve")
    wait_for(lambda: any(row.engine_state for row in find_rows(database)), "the engine")
    wait_for_devices(database, ("serving", None), ("free", None))
    [first] = submit(1)
    assert seen(database, first) == "GPU-1"
    wait_for_devices(database, ("serving", None), ("training", first))
    [second] = submit(1)
    assert seen(database, second) == "GPU-0"
    wait_for_devices(database, ("training", second), ("training", first))


def test_an_export_that_is_calibrated_has_an_idle_gpu_until_it_ends(
    start_worker: Start, submit: Submit, database: Database, settings: Settings, tmp_path: Path
) -> None:
    (adapter := tmp_path / "adapter").mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    ArtifactStore(settings.artifacts_url).put_folder("adapters/ad_0000000000000000", adapter)
    with database.transaction() as session:
        spec = export_spec_adapter.validate_python({"format": "gptq"})
        export_id = export_records.submit(session, make_adapter(session), spec, max_waiting=1).id
    start_worker("--gpus=3", "--serve")
    wait_for_devices(database, ("serving", None), ("exporting", None), ("free", None))
    folder = settings.data_dir / "exports" / export_id
    wait_for(lambda: [path.read_text() for path in folder.glob("*/half")] == ["GPU-1"], "the export's child")

    [first] = submit(1)

    assert seen(database, first) == "GPU-2"
    with database.transaction() as session:
        export_records.cancel(session, export_id)
    wait_for_devices(database, ("serving", None), ("free", None), ("training", first))


def test_gpus_that_only_serve_have_an_engine_each_and_are_given_to_no_job(
    start_worker: Start, submit: Submit, database: Database
) -> None:
    [large, small] = submit(2, 1)
    start_worker("--gpus=3", "--serve", TUNESMITH_SERVE_GPUS="2")
    assert seen(database, small) == "GPU-2"
    wait_for(
        lambda: len({row.engine_url for row in find_rows(database) if row.engine_url}) == 2, "two engines"
    )
    wait_for_devices(database, ("serving", None), ("serving", None), ("training", small))
    [further] = [row for row in find_rows(database) if "train" not in row.roles]
    assert (further.roles, further.devices) == (["serve"], [])
    with database.snapshot() as session:
        assert job_records.get(session, large).state == "queued"


def test_gpus_that_another_worker_serves_on_are_not_shown_by_one_that_trains(
    start_worker: Start, submit: Submit, database: Database
) -> None:
    [job] = submit(1)
    start_worker("--gpus=3", TUNESMITH_SERVE_GPUS="1")
    wait_for_devices(database, ("training", job), ("free", None))
    assert seen(database, job) == "GPU-1"


def paused_by(database: Database) -> str | None:
    """The job that the engine has left its device to; "none" where there is none, None before it responds."""
    states = [row.engine_state for row in find_rows(database) if row.engine_state]
    return next((state.get("paused_by") or "none" for state in states), None)


def test_serving_in_a_worker_of_its_own_pauses_for_a_job_on_its_device_until_the_other_worker_dies(
    start_worker: Start, submit: Submit, database: Database
) -> None:
    start_worker("--gpus=2", "--only-serve")
    wait_for(lambda: paused_by(database) == "none", "the engine")
    trainer = start_worker("--gpus=2")
    first, second = submit(1, 1)
    assert seen(database, first) == "GPU-1"
    assert seen(database, second) == "GPU-0"  # begins once the engine has paused
    assert paused_by(database) == second
    trainer.kill()
    wait_for(lambda: paused_by(database) == "none", "serving to go on")


def test_an_external_engine_takes_no_device_from_jobs(
    start_worker: Start, submit: Submit, database: Database
) -> None:
    start_worker(
        "--gpus=2",
        "--serve",
        TUNESMITH_ENGINE="vllm",
        TUNESMITH_VLLM_URL="http://127.0.0.1:1",
        TUNESMITH_SERVE_GPUS="1",
    )
    [job_id] = submit(2)
    assert seen(database, job_id) == "GPU-0,GPU-1"
    wait_for(lambda: paused_by(database) == "none", "the engine")
    assert sum(row.engine_url is not None for row in find_rows(database)) == 1
