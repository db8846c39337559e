"""One attempt at a piece of work: starts its child, records its reports, and records truthfully how it ended.

The child never touches the database: this process owns the lease and does all the writing.
"""

import logging
import queue as stdlib_queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.errors import TunesmithError
from app.core.errors.storage import StoreUnreachable
from app.core.errors.work import LeaseLost
from app.core.settings import Settings
from app.core.specs.states import StopRequest
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.storage.disk import is_disk_full_error
from app.core.storage.outages import is_unavailable
from app.core.work.failures import WorkFailure
from worker.processes.child_process import ChildProcess
from worker.processes.lease_heartbeat import LeaseHeartbeat
from worker.runners.work_handler import Lease, Report, Result, WorkHandler

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
_STORE_RETRY_SECONDS, _MAX_STORE_RETRY_SECONDS = 1.0, 15.0

Done = TypeVar("Done")


class _Interrupted(Exception):
    """Somebody asked for a stop while the attempt waited for the artifact store."""


class WorkAttempt(Generic[Lease, Report, Result]):
    """An attempt from the start of its child to the record of how it ended."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        handler: WorkHandler[Lease, Report, Result],
        lease: Lease,
        heartbeat: LeaseHeartbeat,
        *,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._handler = handler
        self._lease = lease
        self._heartbeat = heartbeat
        self._stop = stop
        self._name = handler.describe(lease)
        self._unrecorded: list[Report] = []
        self._to_follow_up: deque[Report] = deque()
        self._follow_up_at = 0.0
        self._ending: Result | WorkFailure | None = None
        self._is_pipe_closed = False
        self._stop_request: StopRequest | None = None
        self._kill_at: float | None = None  # set once the child was asked to stop

    def run(self) -> None:
        """Run the child to its end and record how the work ended. Raises LeaseLost."""
        try:
            self._conclude(self._run_child())
        except LeaseLost:
            raise
        except _Interrupted:
            self._release()
        except Exception as error:  # the boundary: whatever it was, the work must not stay `running`
            self._unrecorded = []  # They may be what could not be written.
            self._fail(self._explain(error))

    def _run_child(self) -> ChildProcess:
        """Start the child and stay with it until it is gone."""
        grace_seconds = self._settings.cancel_grace_seconds
        with ExitStack() as stack:
            child = self._patiently(lambda: stack.enter_context(self._handler.start(self._lease)))
            try:
                self._watch(child)
                child.wait(grace_seconds)
            except LeaseLost:
                if self._handler.may_undo(self._lease):
                    child.ask_to_stop()
                    child.wait(grace_seconds)
                raise
            finally:
                # Whatever happened here: no child outlives its attempt.
                child.kill()
                child.close()
        return child

    def _watch(self, child: ChildProcess) -> None:
        """Take the child's reports until the last one, or until its death."""
        while self._ending is None and not self._is_pipe_closed:
            reports = self._read_reports(child)
            self._unrecorded += reports
            self._record()
            self._stop_if_asked(child)
            self._to_follow_up += reports
            if time.monotonic() >= self._follow_up_at:
                self._follow_up_or_postpone()

    def _follow_up_or_postpone(self) -> None:
        """Do what else the reports ask for, in order; the child goes on where the store is away."""
        try:
            self._follow_up()
        except StoreUnreachable as error:
            log.warning("%s: to be stored later: %s", self._name, error.message)
            self._follow_up_at = time.monotonic() + _MAX_STORE_RETRY_SECONDS

    def _follow_up(self) -> None:
        while self._to_follow_up:
            self._handler.follow_up(self._lease, self._to_follow_up[0], self._heartbeat)
            self._to_follow_up.popleft()

    def _read_reports(self, child: ChildProcess) -> list[Report]:
        """Wait a tick for a report, then take all that are there, except the one that is the ending."""
        reports: list[Report] = []
        try:
            line = child.reports.get(timeout=_TICK_SECONDS)
            while line is not None:
                report = self._handler.reports.validate_json(line)
                self._ending = self._handler.find_ending(report)
                if self._ending is not None:
                    return reports
                reports.append(report)
                line = child.reports.get_nowait()
            self._is_pipe_closed = True
        except stdlib_queue.Empty:
            pass
        return reports

    def _record(self) -> None:
        """Write the reports; keep them for the next tick where the database is away. Raises LeaseLost."""
        if self._heartbeat.is_lost:
            raise LeaseLost
        if not self._unrecorded:
            return
        try:
            with self._database.transaction() as session:
                self._handler.record(session, self._lease, self._unrecorded)
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            return
        self._unrecorded = []

    def _stop_if_asked(self, child: ChildProcess) -> None:
        """Pass a stop request or the worker's own stop on to the child; kill it when its grace is over."""
        if self._stop_request is not StopRequest.CANCEL:
            self._stop_request = self._find_stop_request()
        if self._stop_request is StopRequest.CANCEL:
            self._end_child(child, self._settings.cancel_grace_seconds)
        # A request that was taken back is too late for a child that was asked: it ends, in its own time.
        elif self._stop_request or self._was_asked_to_stop or self._stop.is_set():
            self._end_child(child, self._handler.stop_grace_seconds)

    def _find_stop_request(self) -> StopRequest | None:
        try:
            with self._database.snapshot() as session:
                return self._handler.queue.find_stop_request(session, self._lease)
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            return self._stop_request  # The next tick reads again.

    def _end_child(self, child: ChildProcess, grace_seconds: float) -> None:
        deadline = time.monotonic() + grace_seconds
        if not self._was_asked_to_stop:
            child.ask_to_stop()
        self._kill_at = min(deadline, self._kill_at or deadline)
        if time.monotonic() >= self._kill_at:
            child.kill()

    @property
    def _was_asked_to_stop(self) -> bool:
        return self._kill_at is not None

    @property
    def _remaining_grace(self) -> float:
        """The seconds that are left of the grace of a stop; all of it for a child that ended by itself."""
        if self._kill_at is None:
            return self._handler.stop_grace_seconds
        return max(0.0, self._kill_at - time.monotonic())

    def _conclude(self, child: ChildProcess) -> None:
        queue, lease = self._handler.queue, self._lease
        if self._ending is None or isinstance(self._ending, WorkFailure):
            self._handler.finish_copies(lease, timeout_seconds=self._remaining_grace)
        if isinstance(self._ending, WorkFailure):
            self._fail(self._ending)
        elif self._ending is not None:
            self._deliver(self._ending)
        elif self._was_asked_to_stop:
            self._release()
        else:
            failure = self._handler.explain_death(child)
            log.warning("%s: %s", self._name, failure.message)
            most = self._settings.max_lost_attempts
            self._write(lambda session: queue.give_up_attempt(session, lease, failure, max_attempts=most))

    def _release(self) -> None:
        log.info("%s: stopped, %s", self._name, self._stop_request or "released")
        self._write(lambda session: self._handler.queue.release(session, self._lease))

    def _deliver(self, result: Result) -> None:
        """Put the result into the store, then name it in a transaction that ends the work."""
        self._patiently(self._follow_up)
        try:
            deliver = self._handler.deliver
            self._write(self._patiently(lambda: deliver(self._lease, result, self._announce)))
        except BaseException:
            if artifact := self._handler.artifact(self._lease):
                self._store.discard(artifact)
            raise
        self._handler.delivered(self._lease)
        log.info("%s: succeeded", self._name)

    def _patiently(self, act: Callable[[], Done]) -> Done:
        """Do what needs the artifact store, again while that is away, for as long as the settings say.

        Raises LeaseLost, StoreUnreachable, and _Interrupted where the work or the worker is to stop.
        """
        deadline = time.monotonic() + self._settings.store_wait_seconds
        delay = _STORE_RETRY_SECONDS
        while True:
            try:
                return act()
            except StoreUnreachable as error:
                self._record()
                self._stop_request = self._find_stop_request()
                if self._stop_request or self._stop.is_set():
                    raise _Interrupted from error
                if time.monotonic() >= deadline:
                    raise
                log.warning("%s: trying again in %.0f s: %s", self._name, delay, error.message)
            self._stop.wait(delay)
            delay = min(2 * delay, _MAX_STORE_RETRY_SECONDS)

    def _announce(self, report: Report) -> None:
        self._unrecorded.append(report)
        self._record()

    def _fail(self, failure: WorkFailure) -> None:
        log.warning("%s: failed, %s: %s", self._name, failure.code, failure.message)
        # First of all: the database may be on the disk that this work has filled.
        self._handler.clean_up(self._lease)
        self._write(lambda session: self._handler.queue.fail(session, self._lease, failure))

    def _write(self, change: Callable[[Session], object]) -> None:
        """Record what is left to record, and this change, in one transaction. Raises LeaseLost."""

        def write(session: Session) -> None:
            if self._unrecorded:
                self._handler.record(session, self._lease, self._unrecorded)
            change(session)

        self._heartbeat.write(write)

    def _explain(self, error: Exception) -> WorkFailure:
        if is_disk_full_error(error):
            return WorkFailure.of(self._handler.disk_full)
        if isinstance(error, StoreUnreachable):
            return WorkFailure.of(error)
        failure = self._handler.explain(error)
        if not isinstance(error, TunesmithError) or failure != WorkFailure.of(error):
            log.error("%s: the worker failed", self._name, exc_info=error)
        return failure
