"""The launcher of a job over several ranks, of which rank 1 has the fault that RANK_FAULT names."""

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from worker.training.ranks import launcher, rank

FAULT = "RANK_FAULT"


def run_rank(request_json: str, connections: Sequence[Connection]) -> None:
    """As rank.run_rank, with the fault."""
    if os.environ["RANK"] == "1":
        _break(os.environ[FAULT])
    rank.run_rank(request_json, connections)


def _break(fault: str) -> None:
    import torch

    from worker.training import memory
    from worker.training.trainer import AdapterTrainer

    score = AdapterTrainer.score

    def fail(self: AdapterTrainer, batch: Any) -> Any:
        rows = memory.count_rows(batch)
        is_large = rows > 1 or fault == "never fits"
        if self.model.training and self.state.global_step >= 2 and is_large:
            raise torch.OutOfMemoryError("No memory, for the test.")
        return score(self, batch)

    AdapterTrainer.score = fail  # type: ignore[method-assign]


if __name__ == "__main__":
    # By its name: the ranks are spawned, and have another `__main__`.
    from tests.worker.training.ranks import faulty_launcher

    launcher.run_rank = faulty_launcher.run_rank
    launcher.main()
