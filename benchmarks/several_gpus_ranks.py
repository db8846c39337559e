"""Trains a setup in a process for each GPU: `python -m benchmarks.several_gpus_ranks TASK RESULTS`.

TASK is a file with what to train; the figures are written to the file RESULTS.

Libraries that may start CUDA when they are imported are imported once a process sees its own GPU alone.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.training_setups import Setup, draw_rows
from worker.training.ranks.launcher import start_processes
from worker.training.ranks.rank import enter_world, see_own_gpu


@dataclasses.dataclass(frozen=True)
class Task:
    """What the ranks train: a setup on a shape, on rows that each draws for itself."""

    setup: Setup
    shape: str
    vocabulary: int
    rows: int
    longest: int
    folder: str

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """From `to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "setup": Setup(**fields["setup"])})


def main() -> None:
    """Train the task; writes the figures of each rank."""
    task, results = Task.from_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    by_rank = start_processes(train_rank, task.setup.gpus, "benchmark", task.to_json())
    results.write_text(json.dumps([by_rank[rank] for rank in sorted(by_rank)]))


def train_rank(task_json: str) -> dict[str, Any]:
    """Train this process's part. Returns its figures."""
    task = Task.from_json(task_json)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    see_own_gpu(rank)
    world = enter_world(rank, size)
    from benchmarks.training_bench import Bench

    row_ids = draw_rows(task.rows, task.vocabulary, longest=task.longest)
    return Bench(Path(task.folder), task.shape, row_ids, world).train(task.setup)


if __name__ == "__main__":
    main()
