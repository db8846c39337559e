"""Checkpoints of a job on disk: which are complete, which is the newest, and the counters that go on from it.

What is in a checkpoint is trainer.py's business.
"""

import shutil
from pathlib import Path

from pydantic import BaseModel, Field
from transformers.trainer import TRAINER_STATE_NAME

from worker.training import folders

KEPT = 2
_PROGRESS = "progress.json"
_NEEDED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", TRAINER_STATE_NAME)


class Counters(BaseModel):
    """What is counted over the whole job, so that an interrupted one reports as an undisturbed one does."""

    tokens: int = Field(0, description="Tokens trained on, padding left out.")
    seconds: float = Field(0.0, description="Time spent in optimizer steps.")
    step_loss: float = Field(0.0, description="Loss of the present step, as far as it is.")
    last_loss: float | None = None
    window_loss: float = Field(
        0.0, description="Sum of the losses of the steps since the last metrics event."
    )
    window_steps: int = 0
    logged_loss: float | None = None
    evaluated_step: int | None = None
    evaluated_loss: float | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0

    def end_step(self, seconds: float) -> None:
        """An optimizer step is done."""
        self.seconds += seconds
        self.last_loss, self.step_loss = self.step_loss, 0.0
        self.window_loss += self.last_loss
        self.window_steps += 1

    def end_window(self) -> float:
        """The mean loss since the last call."""
        self.logged_loss = self.window_loss / self.window_steps
        self.window_loss, self.window_steps = 0.0, 0
        return self.logged_loss


def folder_of(parent: Path, step: int) -> Path:
    """Where the checkpoint of a step goes."""
    return parent / f"checkpoint-{step}"


def find_newest(parent: Path) -> Path | None:
    """The newest complete checkpoint; what is half-written or damaged is removed."""
    if not parent.is_dir():
        return None
    folders.remove_partial(parent)
    for folder in reversed(_by_age(parent)):
        if _is_complete(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
    return None


def remove_older(parent: Path) -> None:
    """Keep the newest two: the last one and, should it turn out bad, the one before."""
    for folder in _by_age(parent)[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    """The optimizer step at which a checkpoint was taken."""
    return int(folder.name.rpartition("-")[2])


def write_counters(folder: Path, counters: Counters) -> None:
    """Put the counters into a checkpoint."""
    (folder / _PROGRESS).write_text(counters.model_dump_json())


def read_counters(folder: Path) -> Counters:
    """The counters of a checkpoint."""
    return Counters.model_validate_json((folder / _PROGRESS).read_text())


def _by_age(parent: Path) -> list[Path]:
    found = [path for path in parent.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=step_of)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (*_NEEDED, _PROGRESS))
