"""Kills processes by SIGKILL at planned points, in the middle of their work.

A fault point is the n-th event of a process in a stage of a job: a training step, or a file that it opens,
renames or removes (reported by Python's audit events). A delay after the event places the kill inside a
library's own code.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

PLAN_FOLDER = "FAULT_PLAN_FOLDER"
PIDS = "pids.json"


class Target(StrEnum):
    """The processes that are killed."""

    CHILD = "child"
    WORKER = "worker"  # its child must end with it
    BOX = "box"  # the API, every worker, and this process


class Stage(StrEnum):
    """The stage of a job in which events are counted."""

    CLAIMED = "claimed"  # the worker has the job, and no child yet
    PREPARING = "preparing"
    TRAINING = "training"
    CHECKPOINT = "checkpoint"  # while one is written
    SAVING = "saving"
    VERIFYING = "verifying"
    DELIVERING = "delivering"  # between the child's end and the job's


@dataclass(frozen=True)
class FaultPoint:
    """The `tick`-th event of the stage; the kill follows it after the delay."""

    stage: Stage
    tick: int
    target: Target
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class InjectedFault:
    """A fault point at which processes were killed."""

    point: FaultPoint
    attempt: int
    pid: int


class FaultPlan:
    """The fault points of every job, in order, as files in a folder; each is injected once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, job_name: str, points: list[FaultPoint]) -> None:
        """Plan the faults of a job that is not submitted yet."""
        folder = self._folder / job_name
        folder.mkdir(parents=True)
        for number, point in enumerate(points):
            (folder / f"{number}.next").write_text(json.dumps(asdict(point)))

    def find_next(self, job_name: str) -> FaultPoint | None:
        """The next fault point of the job; None where all were injected."""
        path = self._find_path(job_name)
        return FaultPoint(**json.loads(path.read_text())) if path else None

    def find_injected(self, job_name: str) -> list[InjectedFault]:
        """The job's injected faults, in order."""
        paths = sorted((self._folder / job_name).glob("*.injected"))
        found = [json.loads(path.read_text()) for path in paths]
        return [InjectedFault(FaultPoint(**fault.pop("point")), **fault) for fault in found]

    def write_pids(self, pids: list[int]) -> None:
        """Record the processes that a fault with the target BOX kills."""
        (self._folder / f"{PIDS}.new").write_text(json.dumps(pids))
        (self._folder / f"{PIDS}.new").rename(self._folder / PIDS)

    def inject(self, job_name: str, fault: InjectedFault, *, worker_pid: int) -> None:
        """Record the fault and kill its target."""
        path = self._find_path(job_name)
        assert path is not None
        path.with_suffix(".injected").write_text(json.dumps(asdict(fault)))
        path.unlink()
        match fault.point.target:
            case Target.CHILD:
                pids = [os.getpid()]
            case Target.WORKER:
                pids = [worker_pid]
            case Target.BOX:
                pids = [*json.loads((self._folder / PIDS).read_text()), os.getpid()]
        for pid in pids:
            # Another job's fault may have killed one of the processes a moment ago.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _find_path(self, job_name: str) -> Path | None:
        return next(iter(sorted((self._folder / job_name).glob("*.next"))), None)


class FaultInjector:
    """Counts this process's events in each stage and kills at the planned one."""

    def __init__(self, worker_pid: int) -> None:
        self._plan = FaultPlan(Path(os.environ[PLAN_FOLDER]))
        self._worker_pid = worker_pid
        self._point: FaultPoint | None = None
        self._stages: list[Stage] = []
        self._ticks = 0
        sys.addaudithook(self._on_audit)

    def begin(self, job_name: str, attempt: int) -> None:
        """Start counting for an attempt at a job."""
        self._job_name, self._attempt, self._ticks = job_name, attempt, 0
        self._stages = []
        self._point = self._plan.find_next(job_name)

    def enter(self, stage: Stage) -> None:
        """Enter a stage inside the present one."""
        self._stages.append(stage)

    def leave(self) -> None:
        """Leave the present stage."""
        self._stages.pop()

    def tick(self, stage: Stage) -> None:
        """Count an event in a stage."""
        point = self._point
        if point is None or point.stage != stage:
            return
        self._ticks += 1
        if self._ticks < point.tick:
            return
        self._point = None
        if point.delay_seconds:
            threading.Timer(point.delay_seconds, self._inject, [point]).start()
        else:
            self._inject(point)

    def _inject(self, point: FaultPoint) -> None:
        fault = InjectedFault(point, self._attempt, os.getpid())
        self._plan.inject(self._job_name, fault, worker_pid=self._worker_pid)

    def _on_audit(self, event: str, _arguments: object) -> None:
        if self._point and self._stages and event.startswith(("open", "os.", "shutil.")):
            self.tick(self._stages[-1])
