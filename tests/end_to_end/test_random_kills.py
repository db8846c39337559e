"""Five kills by SIGKILL at random points of each job: it must end as an undisturbed one does.

`RANDOM_KILLS_SEED` repeats a run: it is printed with every failure. `RANDOM_KILLS_JOBS` is the number of
jobs: 2 where it is not set, 4 at most.
"""

import io
import os
import random
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.end_to_end.box import Box, Process
from tests.end_to_end.processes.fault_injection import PLAN_FOLDER, FaultPlan, FaultPoint, Stage, Target
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

JOBS = ["first", "second", "third", "fourth"][: int(os.environ.get("RANDOM_KILLS_JOBS", "2"))]
KILLS_A_JOB = 5
WORKERS = 3
ROWS = [{"prompt": f"Say {n} " * (1 + n % 4), "completion": f"{n} is said"} for n in range(40)]
SPEC: dict[str, Any] = {
    "base_model": "tiny-llama",
    "lora": {"r": 8, "target_modules": "all-linear"},
    "training": {
        "max_steps": 90,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "logging_steps": 2,
        "save_steps": 3,
        "validation_split": 0.2,
        "eval_steps": 10,
    },
}
# The latest event of each stage to kill at. Training has about 9 events a step, a checkpoint about 50; a job
# must not end before its fault point.
TICKS = {
    Stage.CLAIMED: 1,
    Stage.PREPARING: 100,
    Stage.TRAINING: 100,
    Stage.CHECKPOINT: 120,
    Stage.SAVING: 40,
    Stage.VERIFYING: 2,
    Stage.DELIVERING: 40,
}
# A kill of the whole box interrupts the other jobs too, so it is rarer.
WEIGHTS = {Target.CHILD: 5, Target.WORKER: 3, Target.BOX: 2}
EARLY = [Stage.CLAIMED, Stage.PREPARING, *[Stage.TRAINING] * 5, *[Stage.CHECKPOINT] * 5]
LATE = [Stage.SAVING, Stage.SAVING, Stage.VERIFYING, Stage.VERIFYING]
SHOWN = {"kind", "step", "epoch", "loss", "grad_norm", "learning_rate", "tokens"}


@pytest.fixture
def seed() -> int:
    """Printed by pytest with a failure."""
    seed = int(os.environ.get("RANDOM_KILLS_SEED") or secrets.randbelow(10**6))
    print(f"RANDOM_KILLS_SEED={seed}")
    return seed


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setenv(PLAN_FOLDER, str(tmp_path / "plan"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_tiny_model(tmp_path / "models")
    box = Box(tmp_path, tmp_path / "models", lease_seconds="8", max_lost_attempts="50")
    yield box
    box.close()


def make_fault_points(chance: random.Random) -> dict[str, list[FaultPoint]]:
    """Five a job: three in training, one while the job ends, one while the worker stores its adapter."""
    early, late = chance.sample(EARLY, len(EARLY)), chance.sample(LATE, len(LATE))
    return {
        name: [
            make_fault_point(chance, stage)
            for stage in (*early[3 * index : 3 * index + 3], late[index], Stage.DELIVERING)
        ]
        for index, name in enumerate(JOBS)
    }


def make_fault_point(chance: random.Random, stage: Stage) -> FaultPoint:
    is_in_worker = stage in (Stage.CLAIMED, Stage.DELIVERING)
    targets = [Target.WORKER, Target.BOX] if is_in_worker else [*Target]
    is_delayed = stage in (Stage.TRAINING, Stage.CHECKPOINT) and chance.random() < 0.5
    return FaultPoint(
        stage,
        tick=chance.randint(1, TICKS[stage]),
        target=chance.choices(targets, [WEIGHTS[target] for target in targets])[0],
        delay_seconds=chance.uniform(0.001, 0.05) if is_delayed else 0.0,
    )


class Restarter:
    """Restarts the API and the workers that were killed."""

    def __init__(self, box: Box, plan: FaultPlan) -> None:
        self._box = box
        self._plan = plan
        self._api = box.start_api()
        self._workers: list[Process] = []
        self.restart()

    def restart(self) -> None:
        if self._api.poll() is not None:
            self._api = self._box.start_api()
        alive = [worker for worker in self._workers if worker.poll() is None]
        missing = range(WORKERS - len(alive))
        self._workers = alive + [self._start_worker() for _ in missing]
        if missing:
            self._plan.write_pids([process.pid for process in (self._api, *self._workers)])

    def _start_worker(self) -> Process:
        return self._box.start_worker(wait=False, module="tests.end_to_end.processes.fault_injected_worker")

    def wait_for_jobs(self, job_ids: list[str]) -> None:
        def have_ended() -> bool:
            self.restart()
            try:
                return all(self._box.job(job_id)["state"] in ("succeeded", "failed") for job_id in job_ids)
            except httpx.TransportError:
                return False

        wait_for(have_ended, "every job to end", timeout_seconds=900, step_seconds=0.2)


def curve(box: Box, job_id: str) -> list[dict[str, Any]]:
    points = box.get_good(box.client.get(f"/jobs/{job_id}/metrics"))["data"]
    return [{key: value for key, value in point.items() if key in SHOWN} for point in points]


def weights(box: Box, adapter: str) -> bytes:
    response = box.client.get(f"/adapters/{adapter}/download")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("adapter_model.safetensors")]
        return archive.read(name)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a killed one is a zombie until its parent waits for it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def check_attempts(job: dict[str, Any], plan: FaultPlan) -> None:
    """Assert that the exit reason of each attempt fits the fault that ended it."""
    reasons = [attempt["exit_reason"] for attempt in job["attempts"]]
    assert reasons[-1] == "succeeded"
    assert set(reasons[:-1]) <= {"process_died", "worker_lost"}
    for fault in plan.find_injected(job["name"]):
        reason = reasons[fault.attempt - 1]
        if fault.point.target == Target.CHILD and reason == "worker_lost":
            # Another job's fault killed the worker before it had recorded the child's death.
            worker_pid = int(job["attempts"][fault.attempt - 1]["worker"].split("-")[-2])
            wait_for(lambda pid=worker_pid: not is_alive(pid), f"the end of the worker of {fault}")
        elif fault.point.target == Target.CHILD:
            assert reason == "process_died", fault
        elif fault.point.stage != Stage.DELIVERING:
            assert reason == "worker_lost", fault
        # In delivery the last transaction may have been committed already.
        wait_for(lambda pid=fault.pid: not is_alive(pid), f"the end of the process of {fault}")


@pytest.mark.timeout(1000)
def test_jobs_that_are_killed_five_times_end_with_the_result_of_an_undisturbed_one(
    box: Box, tmp_path: Path, seed: int
) -> None:
    plan = FaultPlan(tmp_path / "plan")
    for name, points in make_fault_points(random.Random(seed)).items():
        plan.add(name, points)
    restarter = Restarter(box, plan)
    dataset = box.upload(ROWS)

    names = ("undisturbed", *JOBS)
    undisturbed, *job_ids = [box.submit(**SPEC, dataset=dataset, name=name) for name in names]
    restarter.wait_for_jobs([undisturbed, *job_ids])

    jobs = [box.job(job_id) for job_id in job_ids]
    assert [job["state"] for job in jobs] == ["succeeded"] * len(JOBS), [job["error"] for job in jobs]
    assert sum(len(plan.find_injected(name)) for name in JOBS) == KILLS_A_JOB * len(JOBS), [
        plan.find_next(name) for name in JOBS
    ]
    for job in jobs:
        check_attempts(job, plan)
        assert curve(box, job["id"]) == curve(box, undisturbed)
        assert weights(box, job["adapter"]) == weights(box, "undisturbed")
    check_no_partial_files(tmp_path / "data")


def check_no_partial_files(data: Path) -> None:
    """Assert that every adapter is there once and no partial file is left."""
    assert len(list((data / "artifacts" / "adapters").iterdir())) == 1 + len(JOBS)
    assert not list(data.rglob("*.partial"))
