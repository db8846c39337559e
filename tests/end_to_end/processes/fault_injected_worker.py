"""A worker that trains, with fault injection: the real one whose claims and deliveries are counted."""

import logging
import os
from typing import Any

from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from tests.end_to_end.processes.fault_injection import FaultInjector, Stage
from worker import supervisor
from worker.processes.lease_heartbeat import LeaseKeeper
from worker.runners.jobs import JobRunner
from worker.supervisor import Role, Supervisor

injector = FaultInjector(worker_pid=os.getpid())


class WatchedRunner(JobRunner):
    """Reports the claim and the delivery of a job to the injector."""

    def run(self, lease: JobLease) -> None:
        injector.begin(lease.spec.name or "", lease.attempt)
        injector.tick(Stage.CLAIMED)
        super().run(lease)

    def _deliver(self, attempt: Any, request: Any, keeper: LeaseKeeper) -> None:
        injector.enter(Stage.DELIVERING)
        write = keeper.write

        def watched_write(change: Any) -> None:
            injector.tick(Stage.DELIVERING)
            write(change)
            injector.tick(Stage.DELIVERING)

        keeper.write = watched_write  # type: ignore[method-assign]
        super()._deliver(attempt, request, keeper)
        injector.leave()


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    supervisor.JobRunner = WatchedRunner  # type: ignore[misc]
    supervisor._probe_device = lambda: {}  # it imports torch, which this test does not need
    Supervisor(
        Settings(),
        frozenset({Role.TRAIN}),
        training_module="tests.end_to_end.processes.fault_injected_training",
    ).run()


if __name__ == "__main__":
    main()
