"""Runs claimed work of any kind: claims it, keeps its lease alive, and cleans up after it.

What one kind of work is (a job, an export, a fetch) only its handler knows.
"""

import logging
import threading
from functools import partial
from typing import Generic

from app.core.errors.work import LeaseLost
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from worker.processes.lease_heartbeat import LeaseHeartbeat
from worker.runners.work_attempt import WorkAttempt
from worker.runners.work_handler import Lease, Report, Result, WorkHandler

log = logging.getLogger(__name__)


class WorkRunner(Generic[Lease, Report, Result]):
    """Runs one kind of work, one piece at a time, until the worker stops."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        handler: WorkHandler[Lease, Report, Result],
        *,
        stop: threading.Event,
    ) -> None:
        self.handler = handler
        self._settings = settings
        self._database = database
        self._store = store
        self._stop = stop

    def claim(self) -> Lease | None:
        """The lease on the next piece of work, or None where there is none."""
        settings = self._settings
        with self._database.transaction() as session:
            lease = self.handler.queue.claim(
                session, lease_seconds=settings.lease_seconds, max_attempts=settings.max_lost_attempts
            )
        if lease is None:
            self.handler.rest()
        return lease

    def run(self, lease: Lease) -> None:
        """Run one attempt to its end and record how it ended. Only a lost lease leaves no record."""
        name, seconds = self.handler.describe(lease), self._settings.lease_seconds
        renew = partial(self.handler.queue.heartbeat, lease=lease, lease_seconds=seconds)
        with LeaseHeartbeat(self._database, name, seconds, renew) as heartbeat:
            attempt = WorkAttempt(
                self._settings, self._database, self._store, self.handler, lease, heartbeat, stop=self._stop
            )
            try:
                attempt.run()
            except LeaseLost:
                log.warning("%s: cancelled, deleted, or another worker's now; result dropped", name)
            except Exception:  # the worker goes on; the lease runs out, which counts as a lost attempt
                log.exception("%s: how it ended could not be recorded", name)
            finally:
                self.handler.clean_up(lease)
