"""What the ranks of a job read, from the driver's host to theirs, through Ray's object store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from app.core.retention.folders import CHECKPOINTS, OUTGOING
from worker.processes.reports import TrainingRequest
from worker.training.hosts.files import read_parts

_JOB = "job"
_OUTPUT = "adapter"


@dataclass(frozen=True)
class JobInputs:
    """Files by their path in a rank's folder, each as references to its parts."""

    files: Mapping[str, Sequence[Any]]

    @classmethod
    def put(cls, request: TrainingRequest) -> "JobInputs":
        """Put all that a rank reads into the object store of this host; it stays while this process does."""
        files = dict(_find_files(request))
        return cls({name: [ray.put(part) for _, part in read_parts(path)] for name, path in files.items()})

    def write(self, folder: Path) -> None:
        """Write the files into a folder of this host."""
        for name, parts in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for part in parts:
                    file.write(ray.get(part))
        (folder / _JOB).mkdir(exist_ok=True)


def localize(request: TrainingRequest, folder: Path, models_folder: Path | None) -> TrainingRequest:
    """The request as a rank runs it whose inputs are in `folder`."""
    places: dict[str, Path | None] = {
        name: folder / name / path.name if path else None for name, path in _inputs(request).items()
    }
    return request.model_copy(
        update={
            **places,
            "job_folder": folder / _JOB,
            "output_folder": folder / _OUTPUT,
            "trials_folder": None,  # of the worker's machine
            "models_folder": models_folder or request.models_folder,
        }
    )


def _inputs(request: TrainingRequest) -> dict[str, Path | None]:
    return {
        "dataset": request.dataset,
        "validation_dataset": request.validation_dataset,
        "continue_from": request.continue_from,
    }


def _find_files(request: TrainingRequest) -> list[tuple[str, Path]]:
    """The files with their paths in a rank's folder."""
    found: list[tuple[str, Path]] = []
    roots = [(f"{name}/{path.name}", path) for name, path in _inputs(request).items() if path]
    roots += [(f"{_JOB}/{name}", request.job_folder / name) for name in CHECKPOINTS if name != OUTGOING]
    # What attempts have computed before the first step.
    others = [path for path in request.job_folder.iterdir() if path.is_file() and path.suffix != ".log"]
    roots += [(f"{_JOB}/{path.name}", path) for path in others]
    for name, path in roots:
        if path.is_dir():
            files = [one for one in sorted(path.rglob("*")) if one.is_file()]
            found += [(f"{name}/{one.relative_to(path)}", one) for one in files]
        elif path.is_file():
            found.append((name, path))
    return found
