"""Twenty deaths by SIGKILL, at random moments of four jobs: each job must end as if nothing had happened.

`RANDOM_KILLS_SEED` repeats a run: it is printed with every failure.
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
from tests.end_to_end.processes.fault_injection import PLAN_FOLDER, Appointment, Plan, Stage, Target
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_for

JOBS = ["first", "second", "third", "fourth"]
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
# Moments to choose from. In training there are about 9 a step, in a checkpoint 50; a job must not be done
# before its time has come.
TICKS = {
    Stage.CLAIMED: 1,
    Stage.PREPARING: 100,
    Stage.TRAINING: 100,
    Stage.CHECKPOINT: 120,
    Stage.SAVING: 40,
    Stage.VERIFYING: 2,
    Stage.DELIVERING: 40,
}
# A box that dies takes the other jobs' attempts with it, so there are fewer of those.
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


def make_appointments(chance: random.Random) -> dict[str, list[Appointment]]:
    """Five a job: three while it trains, one while it ends, one while the worker takes its adapter over."""
    early, late = chance.sample(EARLY, len(EARLY)), chance.sample(LATE, len(LATE))
    return {
        name: [
            make_appointment(chance, stage)
            for stage in (*early[3 * index : 3 * index + 3], late[index], Stage.DELIVERING)
        ]
        for index, name in enumerate(JOBS)
    }


def make_appointment(chance: random.Random, stage: Stage) -> Appointment:
    is_in_worker = stage in (Stage.CLAIMED, Stage.DELIVERING)
    targets = [Target.WORKER, Target.BOX] if is_in_worker else [*Target]
    is_late = stage in (Stage.TRAINING, Stage.CHECKPOINT) and chance.random() < 0.5
    return Appointment(
        stage,
        tick=chance.randint(1, TICKS[stage]),
        target=chance.choices(targets, [WEIGHTS[target] for target in targets])[0],
        delay_seconds=chance.uniform(0.001, 0.05) if is_late else 0.0,
    )


class Keeper:
    """Restarts what died."""

    def __init__(self, box: Box, plan: Plan) -> None:
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

        wait_for(have_ended, "every job to end", timeout_seconds=900)


def curve(box: Box, job_id: str) -> list[dict[str, Any]]:
    points = box.get_good(box.client.get(f"/jobs/{job_id}/metrics"))["data"]
    return [{key: value for key, value in point.items() if key in SHOWN} for point in points]


def weights(box: Box, adapter: str) -> bytes:
    response = box.client.get(f"/adapters/{adapter}/download")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("adapter_model.safetensors")]
        return archive.read(name)


def is_alive(pid: int) -> bool:
    """What was killed stays a zombie until whoever started it looks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def check_story(job: dict[str, Any], plan: Plan) -> None:
    """The attempts say what happened to them."""
    reasons = [attempt["exit_reason"] for attempt in job["attempts"]]
    assert reasons[-1] == "succeeded"
    assert set(reasons[:-1]) <= {"process_died", "worker_lost"}
    for death in plan.find_deaths(job["name"]):
        reason = reasons[death.attempt - 1]
        if death.appointment.target == Target.CHILD and reason == "worker_lost":
            # Another job's death took the worker along before it had written down that the child was gone.
            worker_pid = int(job["attempts"][death.attempt - 1]["worker"].split("-")[-2])
            wait_for(lambda pid=worker_pid: not is_alive(pid), f"the worker of {death} to be gone")
        elif death.appointment.target == Target.CHILD:
            assert reason == "process_died", death
        elif death.appointment.stage != Stage.DELIVERING:
            assert reason == "worker_lost", death
        # In delivery the last transaction may have been committed already.
        wait_for(lambda pid=death.pid: not is_alive(pid), f"{death}")


@pytest.mark.timeout(1000)
def test_twenty_deaths_change_nothing(box: Box, tmp_path: Path, seed: int) -> None:
    plan = Plan(tmp_path / "plan")
    for name, appointments in make_appointments(random.Random(seed)).items():
        plan.make(name, appointments)
    keeper = Keeper(box, plan)
    dataset = box.upload(ROWS)

    names = ("undisturbed", *JOBS)
    undisturbed, *job_ids = [box.submit(**SPEC, dataset=dataset, name=name) for name in names]
    keeper.wait_for_jobs([undisturbed, *job_ids])

    jobs = [box.job(job_id) for job_id in job_ids]
    assert [job["state"] for job in jobs] == ["succeeded"] * 4, [job["error"] for job in jobs]
    assert sum(len(plan.find_deaths(name)) for name in JOBS) == 20, [plan.find_next(name) for name in JOBS]
    for job in jobs:
        check_story(job, plan)
        assert curve(box, job["id"]) == curve(box, undisturbed)
        assert weights(box, job["adapter"]) == weights(box, "undisturbed")
    check_nothing_is_left(tmp_path / "data")


def check_nothing_is_left(data: Path) -> None:
    """No half of anything."""
    assert len(list((data / "artifacts" / "adapters").iterdir())) == 1 + len(JOBS)
    assert not list(data.rglob("*.partial"))
