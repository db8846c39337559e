"""A worker that trains, with fault injection: the real one whose claims and deliveries are counted."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from tests.end_to_end.processes.fault_injection import FaultInjector, Stage
from worker import supervisor
from worker.processes.child_process import ChildProcess
from worker.processes.reports import Ended, Report
from worker.runners.jobs import JobHandler
from worker.supervisor import Role, Supervisor

injector = FaultInjector(worker_pid=os.getpid())


class WatchedHandler(JobHandler):
    """Reports the claim and the delivery of a job to the injector."""

    @contextmanager
    def start(self, lease: JobLease) -> Iterator[ChildProcess]:
        injector.begin(lease.spec.name or "", lease.attempt)
        injector.tick(Stage.CLAIMED)
        with super().start(lease) as child:
            yield child

    def deliver(
        self, lease: JobLease, result: Ended, announce: Callable[[Report], None]
    ) -> Callable[[Session], None]:
        injector.enter(Stage.DELIVERING)
        succeed = super().deliver(lease, result, announce)
        injector.tick(Stage.DELIVERING)
        return succeed

    def delivered(self, lease: JobLease) -> None:
        injector.tick(Stage.DELIVERING)
        super().delivered(lease)
        injector.leave()


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    supervisor.JobHandler = WatchedHandler  # type: ignore[misc]
    supervisor._probe_device = lambda: {}  # it imports torch, which this test does not need
    Supervisor(
        Settings(),
        frozenset({Role.TRAIN}),
        training_module="tests.end_to_end.processes.fault_injected_training",
    ).run()


if __name__ == "__main__":
    main()
