"""One attempt at a job as all parts of the training process know it: its request, device and reports."""

import threading
from dataclasses import dataclass
from pathlib import Path

from app.core.jobs.events import Log, Warn
from app.core.specs.states import Phase
from worker.models.device import Device
from worker.processes.reports import Advanced, Happened, TrainingRequest
from worker.training.progress.callbacks import Send
from worker.training.ranks.world import ALONE, World


class Stopped(Exception):
    """The worker requested a stop, and nothing is left to save."""


@dataclass(frozen=True)
class TrainingAttempt:
    """The request of an attempt, its device, how it reports to the worker, and its ranks."""

    request: TrainingRequest
    device: Device
    send: Send
    asked_to_stop: threading.Event  # of several ranks, that of rank 0 alone
    world: World = ALONE

    def enter(self, phase: Phase) -> None:
        """Report a new phase. Raises Stopped where the worker requested a stop."""
        self.stop_if_asked()
        self.send(Advanced(phase=phase))

    def stop_if_asked(self) -> None:
        """Raises Stopped, on all ranks alike, where the worker requested a stop."""
        if self.world.any(self.asked_to_stop.is_set()):
            raise Stopped

    def say(self, line: str) -> None:
        """Add a line to the job's log."""
        self.send(Happened(event=Log(message=line)))

    def warn(self, code: str, message: str) -> None:
        """Add a warning to the job's events."""
        self.send(Happened(event=Warn(code=code, message=message)))

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, which all attempts of a job share."""
        return self.request.job_folder / "checkpoints"

    @property
    def epoch_adapters(self) -> Path:
        """The folder of the adapters of finished epochs, until the worker has moved them."""
        return self.request.job_folder / "kept-adapters"

    @property
    def best_adapters(self) -> Path:
        """The folder of the adapters with the lowest evaluation loss so far, for early stopping."""
        return self.request.job_folder / "best-adapters"
