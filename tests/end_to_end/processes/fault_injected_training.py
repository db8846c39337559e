"""The training child, mortal: `worker.training.run` with a reaper that watches it."""

import os
from typing import Any

from pydantic import BaseModel

from tests.end_to_end.processes.fault_injection import Reaper, Stage
from worker.processes.child import ParentLink, Request
from worker.processes.reports import Advanced, TrainingRequest
from worker.training import run
from worker.training.trainer import AdapterTrainer

reaper = Reaper(worker_pid=os.getppid())


class WatchedLink(ParentLink):
    """Tells the reaper what the child tells the worker."""

    def read_request(self, kind: type[Request]) -> Request:
        request = super().read_request(kind)
        assert isinstance(request, TrainingRequest)
        reaper.begin(request.spec.name or "", request.attempt)
        return request

    def send(self, report: BaseModel) -> None:
        super().send(report)
        if not isinstance(report, Advanced) or report.phase is None:
            return
        if report.phase in list(Stage):
            reaper.enter(Stage(report.phase))


class WatchedTrainer(AdapterTrainer):
    """Tells the reaper of passes and checkpoints."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        reaper.tick(Stage.TRAINING)
        loss = super().training_step(*args, **kwargs)
        reaper.tick(Stage.TRAINING)
        return loss

    def _save_checkpoint(self, *args: Any) -> None:
        reaper.enter(Stage.CHECKPOINT)
        super()._save_checkpoint(*args)
        reaper.leave()


if __name__ == "__main__":
    run.ParentLink = WatchedLink  # type: ignore[misc]
    run.AdapterTrainer = WatchedTrainer  # type: ignore[misc]
    run.main()
