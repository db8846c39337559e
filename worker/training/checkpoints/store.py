"""What a checkpoint holds besides the trainer's files: the job's counters and the events that it sent."""

from pathlib import Path

from worker import checkpoint_folders
from worker.training.progress.counters import Counters
from worker.training.progress.history import History

_PROGRESS = "progress.json"
_HISTORY = "history.json"


def seal(folder: Path, counters: Counters, history: History) -> None:
    """Write the counters, the events and, last, the manifest."""
    (folder / _PROGRESS).write_text(counters.model_dump_json())
    (folder / _HISTORY).write_text(history.model_dump_json())
    checkpoint_folders.seal(folder)


def read_counters(folder: Path) -> Counters:
    """The counters of a checkpoint."""
    return Counters.model_validate_json((folder / _PROGRESS).read_text())


def read_history(folder: Path) -> History:
    """The last events that were sent before a checkpoint."""
    return History.model_validate_json((folder / _HISTORY).read_text())


def read_all_counters(parent: Path) -> list[Counters]:
    """The counters of every checkpoint in a folder."""
    return [read_counters(folder) for folder in checkpoint_folders.list_by_age(parent)]
