"""Processes that die at appointed moments, by SIGKILL, in the middle of what they do.

A moment is the n-th thing that a process does in some stage of a job: a step of training, or a file that it
opens, renames or removes. Python's audit events tell of those. Some moments are followed by a delay, so that
death comes in the middle of a library's own code.
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

PLAN_FOLDER = "MORTAL_PLAN"
PIDS = "pids.json"


class Target(StrEnum):
    """What dies."""

    CHILD = "child"
    WORKER = "worker"  # its child must follow
    BOX = "box"  # the API and every worker, and this process


class Stage(StrEnum):
    """When."""

    CLAIMED = "claimed"  # the worker has the job, and no child yet
    PREPARING = "preparing"
    TRAINING = "training"
    CHECKPOINT = "checkpoint"  # while one is written
    SAVING = "saving"
    VERIFYING = "verifying"
    DELIVERING = "delivering"  # between the child's end and the job's


@dataclass(frozen=True)
class Appointment:
    """At the `tick`-th thing that happens in the stage, and so many seconds later."""

    stage: Stage
    tick: int
    target: Target
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class Death:
    """An appointment that was kept."""

    appointment: Appointment
    attempt: int
    pid: int


class Plan:
    """The appointments of every job, in order; each is kept once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, job_name: str, appointments: list[Appointment]) -> None:
        """Before the job is submitted."""
        folder = self._folder / job_name
        folder.mkdir(parents=True)
        for number, appointment in enumerate(appointments):
            (folder / f"{number}.next").write_text(json.dumps(asdict(appointment)))

    def find_next(self, job_name: str) -> Appointment | None:
        """What the present attempt at the job has before it."""
        path = self._find_path(job_name)
        return Appointment(**json.loads(path.read_text())) if path else None

    def find_deaths(self, job_name: str) -> list[Death]:
        """What was kept, in order."""
        found = [json.loads(path.read_text()) for path in sorted((self._folder / job_name).glob("*.kept"))]
        return [Death(Appointment(**death.pop("appointment")), **death) for death in found]

    def write_pids(self, pids: list[int]) -> None:
        """Who dies with the box."""
        (self._folder / f"{PIDS}.new").write_text(json.dumps(pids))
        (self._folder / f"{PIDS}.new").rename(self._folder / PIDS)

    def keep(self, job_name: str, death: Death, *, worker_pid: int) -> None:
        """Die."""
        path = self._find_path(job_name)
        assert path is not None
        path.with_suffix(".kept").write_text(json.dumps(asdict(death)))
        path.unlink()
        match death.appointment.target:
            case Target.CHILD:
                pids = [os.getpid()]
            case Target.WORKER:
                pids = [worker_pid]
            case Target.BOX:
                pids = [*json.loads((self._folder / PIDS).read_text()), os.getpid()]
        for pid in pids:
            # One of the box may be dead already: another job's appointment took it a moment ago.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _find_path(self, job_name: str) -> Path | None:
        return next(iter(sorted((self._folder / job_name).glob("*.next"))), None)


class Reaper:
    """Counts what this process does, and keeps the appointment."""

    def __init__(self, worker_pid: int) -> None:
        self._plan = Plan(Path(os.environ[PLAN_FOLDER]))
        self._worker_pid = worker_pid
        self._appointment: Appointment | None = None
        self._stages: list[Stage] = []
        self._ticks = 0
        sys.addaudithook(self._on_audit)

    def begin(self, job_name: str, attempt: int) -> None:
        """An attempt begins."""
        self._job_name, self._attempt, self._ticks = job_name, attempt, 0
        self._stages = []
        self._appointment = self._plan.find_next(job_name)

    def enter(self, stage: Stage) -> None:
        """A stage begins, inside the present one."""
        self._stages.append(stage)

    def leave(self) -> None:
        """It ends."""
        self._stages.pop()

    def tick(self, stage: Stage) -> None:
        """Something happened in a stage."""
        appointment = self._appointment
        if appointment is None or appointment.stage != stage:
            return
        self._ticks += 1
        if self._ticks < appointment.tick:
            return
        self._appointment = None
        if appointment.delay_seconds:
            threading.Timer(appointment.delay_seconds, self._die, [appointment]).start()
        else:
            self._die(appointment)

    def _die(self, appointment: Appointment) -> None:
        death = Death(appointment, self._attempt, os.getpid())
        self._plan.keep(self._job_name, death, worker_pid=self._worker_pid)

    def _on_audit(self, event: str, _arguments: object) -> None:
        if self._appointment and self._stages and event.startswith(("open", "os.", "shutil.")):
            self.tick(self._stages[-1])
