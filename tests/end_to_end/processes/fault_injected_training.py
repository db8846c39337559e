"""The training child with fault injection: `worker.training.run` whose steps and files are counted."""

import os
from typing import Any

from pydantic import BaseModel

from tests.end_to_end.processes.fault_injection import FaultInjector, Stage
from worker.processes.child import ParentLink, Request
from worker.processes.reports import Advanced, TrainingRequest
from worker.training import construction, run
from worker.training.trainer import AdapterTrainer

injector = FaultInjector(worker_pid=os.getppid())


class WatchedLink(ParentLink):
    """Reports the attempt and its phases to the injector."""

    def read_request(self, kind: type[Request]) -> Request:
        request = super().read_request(kind)
        assert isinstance(request, TrainingRequest)
        injector.begin(request.spec.name or "", request.attempt)
        return request

    def send(self, report: BaseModel) -> None:
        super().send(report)
        if not isinstance(report, Advanced) or report.phase is None:
            return
        if report.phase in list(Stage):
            injector.enter(Stage(report.phase))


class WatchedTrainer(AdapterTrainer):
    """Reports training steps and checkpoints to the injector."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        injector.tick(Stage.TRAINING)
        loss = super().training_step(*args, **kwargs)
        injector.tick(Stage.TRAINING)
        return loss

    def _save_checkpoint(self, *args: Any) -> None:
        injector.enter(Stage.CHECKPOINT)
        super()._save_checkpoint(*args)
        injector.leave()


if __name__ == "__main__":
    run.ParentLink = WatchedLink  # type: ignore[misc]
    construction.AdapterTrainer = WatchedTrainer  # type: ignore[misc]
    run.main()
