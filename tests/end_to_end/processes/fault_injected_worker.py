"""A worker that trains, mortal: the real one with a reaper that watches it and its children."""

import logging
import os
from typing import Any

from app.core.jobs.queue import Lease
from app.core.settings import Settings
from tests.end_to_end.processes.fault_injection import Reaper, Stage
from worker import supervisor
from worker.processes.lease_heartbeat import LeaseKeeper
from worker.runners.jobs import JobRunner
from worker.supervisor import Role, Supervisor

reaper = Reaper(worker_pid=os.getpid())


class WatchedRunner(JobRunner):
    """Tells the reaper of the beginning and of the end of a job."""

    def run(self, lease: Lease) -> None:
        reaper.begin(lease.spec.name or "", lease.attempt)
        reaper.tick(Stage.CLAIMED)
        super().run(lease)

    def _deliver(self, attempt: Any, request: Any, keeper: LeaseKeeper) -> None:
        reaper.enter(Stage.DELIVERING)
        write = keeper.write

        def watched_write(change: Any) -> None:
            reaper.tick(Stage.DELIVERING)
            write(change)
            reaper.tick(Stage.DELIVERING)

        keeper.write = watched_write  # type: ignore[method-assign]
        super()._deliver(attempt, request, keeper)
        reaper.leave()


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    supervisor.JobRunner = WatchedRunner  # type: ignore[misc]
    supervisor._probe_device = lambda: {}  # it imports torch, and who trains does not ask
    Supervisor(
        Settings(),
        frozenset({Role.TRAIN}),
        training_module="tests.end_to_end.processes.fault_injected_training",
    ).run()


if __name__ == "__main__":
    main()
