"""One attempt at a job, as every part of the training child sees it: what is asked, and whom to tell."""

import threading
from dataclasses import dataclass
from pathlib import Path

from app.core.jobs.events import Log, Warn
from app.core.specs.states import Phase
from worker.models.device import Device
from worker.processes.reports import Advanced, Happened, TrainingRequest
from worker.training.progress.callbacks import Send


class Stopped(Exception):
    """The worker asked for a stop, and there is nothing left to save."""


@dataclass(frozen=True)
class TrainingAttempt:
    """What every part of the job needs."""

    request: TrainingRequest
    device: Device
    send: Send
    asked_to_stop: threading.Event

    def enter(self, phase: Phase) -> None:
        """Begin a phase. Raises Stopped: between phases nothing is half done."""
        if self.asked_to_stop.is_set():
            raise Stopped
        self.send(Advanced(phase=phase))

    def say(self, line: str) -> None:
        """A line in the job's log."""
        self.send(Happened(event=Log(message=line)))

    def warn(self, code: str, message: str) -> None:
        """Something that the person should know."""
        self.send(Happened(event=Warn(code=code, message=message)))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are, from one attempt to the next."""
        return self.request.job_folder / "checkpoints"

    @property
    def epoch_adapters(self) -> Path:
        """The adapters of ended epochs, until the worker has taken them."""
        return self.request.job_folder / "kept-adapters"

    @property
    def best_adapters(self) -> Path:
        """The adapters with the lowest evaluation loss so far, where training may stop early."""
        return self.request.job_folder / "best-adapters"
