"""Runs one claimed job: starts its training child, records what it reports, and ends the job truthfully.

The child never touches the database; this process owns the lease and does all the writing. Knows no torch.
"""

import errno
import logging
import queue as stdlib_queue
import shutil
import signal
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.errors.jobs import DiskFull, JobFailure
from app.core.errors.work import LeaseLost
from app.core.jobs import queue
from app.core.jobs.events import AnyEventData, Metrics, StateChange
from app.core.jobs.queue import JobLease, JobProgress
from app.core.settings import Settings
from app.core.specs.states import JobState, Phase, StopRequest
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from worker.processes.child_process import ChildProcess
from worker.processes.lease_heartbeat import LeaseKeeper
from worker.processes.prewarmed import Standby
from worker.processes.reports import Advanced, Ended, Happened, Kept, Outcome, TrainingRequest, report_adapter
from worker.runners import checkpoint_adapters, job_inputs

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5


class Device(Protocol):
    """Lends the device to a job."""

    def lend(self, job_id: str) -> AbstractContextManager[bool]:
        """Makes room on the device, for as long as the context lasts; answers whether all of it is free."""


@dataclass
class _Attempt:
    """What is known of the attempt under way."""

    lease: JobLease
    child: ChildProcess
    unrecorded: list[AnyEventData] = field(default_factory=list)
    progress: JobProgress = field(default_factory=JobProgress)
    kept: list[Kept] = field(default_factory=list)
    ended: Ended | None = None
    phase: Phase = Phase.PREPARING  # which the claim has recorded
    has_stepped: bool = False  # with a loss: when training begins, the step is told that it begins from
    is_pipe_closed: bool = False
    request: StopRequest | None = None
    kill_at: float | None = None
    was_killed: bool = False

    @property
    def was_asked_to_stop(self) -> bool:
        return self.kill_at is not None


class JobRunner:
    """Runs jobs, one at a time, until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        device: Device,
        *,
        standby: Standby,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._device = device
        self._standby = standby
        self._stop = stop

    def run(self, lease: JobLease) -> None:
        """Run one attempt to its end and record how it ended. Only a lost lease leaves no record."""
        log.info("Job %s: attempt %d", lease.job_id, lease.attempt)
        seconds = self._settings.lease_seconds
        renew = partial(queue.heartbeat, lease=lease, lease_seconds=seconds)
        with LeaseKeeper(self._database, f"Job {lease.job_id}", seconds, renew) as keeper:
            try:
                self._run_and_conclude(lease, keeper)
            except LeaseLost:
                log.warning("Job %s: another worker owns it now; result dropped", lease.job_id)
            finally:
                shutil.rmtree(job_inputs.output_folder(self._settings, lease), ignore_errors=True)

    def _run_and_conclude(self, lease: JobLease, keeper: LeaseKeeper) -> None:
        try:
            job_inputs.remove_leftovers(self._settings, self._database, self._store, lease)
            request = job_inputs.make_request(self._settings, self._database, self._store, lease)
            with self._device.lend(lease.job_id) as is_alone:
                request = request.model_copy(update={"is_alone": is_alone})
                attempt = self._train(lease, request, keeper)
            self._conclude(attempt, request, keeper)
        except LeaseLost:
            raise
        except JobFailure as failure:
            _fail(lease, keeper, WorkFailure(failure.code, failure.message, failure.hint))
        except OSError as error:
            _fail(lease, keeper, _io_failure(error))
        except Exception as error:  # the job boundary: whatever it was, the job must not stay in `running`
            log.exception("Job %s: the worker failed", lease.job_id)
            text = f"The worker failed: {type(error).__name__}: {error}"
            _fail(lease, keeper, WorkFailure("internal_error", text, "See the worker's log."))

    def _train(self, lease: JobLease, request: TrainingRequest, keeper: LeaseKeeper) -> _Attempt:
        """Start the child and stay with it until it is gone."""
        log_path = request.job_folder / f"attempt-{lease.attempt}.log"
        attempt = _Attempt(lease, self._standby.start(request, log_path))
        try:
            while not attempt.is_pipe_closed:
                self._read_reports(attempt)
                if keeper.is_lost:
                    raise LeaseLost
                self._record(attempt)
                self._stop_if_asked(attempt)
                # Not earlier: until its first step a job needs the processor itself.
                if attempt.has_stepped and not self._stop.is_set():
                    self._standby.prepare()
                self._deliver_kept(attempt, keeper)
            attempt.child.wait(self._settings.cancel_grace_seconds)
        finally:
            # Whatever happened here: no child outlives its attempt.
            attempt.child.kill()
            attempt.child.close()
        return attempt

    def _read_reports(self, attempt: _Attempt) -> None:
        """Wait a tick for a report, then take all that are there."""
        try:
            line = attempt.child.reports.get(timeout=_TICK_SECONDS)
            while line is not None:
                _apply(attempt, line)
                line = attempt.child.reports.get_nowait()
            attempt.is_pipe_closed = True
        except stdlib_queue.Empty:
            pass

    def _record(self, attempt: _Attempt) -> None:
        """Write what has gathered; keep it for the next tick where the database is away."""
        if not attempt.unrecorded and attempt.progress == JobProgress():
            return
        try:
            with self._database.transaction() as session:
                queue.record(session, attempt.lease, attempt.unrecorded, attempt.progress)
        except DBAPIError as error:
            log.warning("Job %s: events kept for later: %s", attempt.lease.job_id, error.orig)
            return
        attempt.unrecorded = []
        attempt.progress = JobProgress()

    def _deliver_kept(self, attempt: _Attempt, keeper: LeaseKeeper) -> None:
        """Put the adapters that the job keeps on its way into the store."""
        while attempt.kept:
            checkpoint_adapters.deliver(self._store, keeper, attempt.lease, attempt.kept.pop(0))

    def _stop_if_asked(self, attempt: _Attempt) -> None:
        """Pass a cancel, a pause or the worker's own stop on to the child; kill it when its grace is over."""
        if attempt.request is not StopRequest.CANCEL:
            attempt.request = self._find_stop_request(attempt)
        settings = self._settings
        if attempt.request is StopRequest.CANCEL:
            self._end_child(attempt, settings.cancel_grace_seconds)
        # A pause that was taken back is too late for a child that was told already: it ends, in its own time.
        elif attempt.request or attempt.was_asked_to_stop or self._stop.is_set():
            self._end_child(attempt, settings.shutdown_grace_seconds)

    def _end_child(self, attempt: _Attempt, grace_seconds: float) -> None:
        deadline = time.monotonic() + grace_seconds
        if attempt.kill_at is None:
            attempt.child.ask_to_stop()
        attempt.kill_at = min(deadline, attempt.kill_at or deadline)
        if time.monotonic() >= attempt.kill_at:
            attempt.was_killed = True
            attempt.child.kill()

    def _find_stop_request(self, attempt: _Attempt) -> StopRequest | None:
        try:
            with self._database.snapshot() as session:
                return queue.find_stop_request(session, attempt.lease)
        except DBAPIError:
            return attempt.request  # The lease keeper says it, and the next tick asks again.

    def _conclude(self, attempt: _Attempt, request: TrainingRequest, keeper: LeaseKeeper) -> None:
        lease, ended = attempt.lease, attempt.ended
        if ended and ended.outcome is Outcome.FINISHED:
            self._deliver(attempt, request, keeper)
            return
        keeper.write(lambda session: queue.record(session, lease, attempt.unrecorded, attempt.progress))
        if ended and ended.outcome is Outcome.FAILED:
            _fail(lease, keeper, _failure(ended))
        elif attempt.was_asked_to_stop:
            log.info("Job %s: stopped, %s", lease.job_id, attempt.request or "handed back")
            reason = "The worker is shutting down." if self._stop.is_set() else "Resumed while it stopped."
            keeper.write(lambda session: queue.release(session, lease, reason=reason))
        else:
            self._lose(attempt, keeper)

    def _deliver(self, attempt: _Attempt, request: TrainingRequest, keeper: LeaseKeeper) -> None:
        """Put the adapter into the store, then succeed and name it in one transaction."""
        lease = attempt.lease
        adapter_id, artifact = adapter_records.name_artifact(lease.job_id, lease.attempt)

        def succeed(session: Session) -> None:
            queue.record(session, lease, attempt.unrecorded, attempt.progress)
            adapter = adapter_records.add(
                session,
                adapter_id,
                spec=lease.spec,
                job_id=lease.job_id,
                artifact=artifact,
                size_bytes=size_bytes,
            )
            queue.succeed(session, lease, adapter_name=adapter.name)

        try:
            size_bytes = self._store.put_folder(artifact, request.output_folder)
            keeper.write(succeed)
        except BaseException:
            self._store.delete(artifact)
            raise
        job_inputs.remove_checkpoints(request.job_folder)
        log.info("Job %s: succeeded, adapter %s", lease.job_id, adapter_id)

    def _lose(self, attempt: _Attempt, keeper: LeaseKeeper) -> None:
        """The child died without a word."""
        failure = _death(attempt.child)
        log.warning("Job %s: %s", attempt.lease.job_id, failure.message)
        most = self._settings.max_lost_attempts
        keeper.write(
            lambda session: queue.give_up_attempt(session, attempt.lease, failure, max_lost_attempts=most)
        )


def _fail(lease: JobLease, keeper: LeaseKeeper, failure: WorkFailure) -> None:
    log.warning("Job %s: failed, %s: %s", lease.job_id, failure.code, failure.message)
    keeper.write(lambda session: queue.fail(session, lease, failure))


def _apply(attempt: _Attempt, line: bytes) -> None:
    report = report_adapter.validate_json(line)
    if isinstance(report, Ended):
        attempt.ended = report
    elif isinstance(report, Kept):
        attempt.kept.append(report)
    elif isinstance(report, Happened):
        attempt.unrecorded.append(report.event)
        if isinstance(report.event, Metrics):
            attempt.progress = _merge(attempt.progress, report.event)
    elif isinstance(report, Advanced):
        attempt.has_stepped |= report.loss is not None
        if report.phase not in (None, attempt.phase):
            attempt.phase = report.phase
            attempt.unrecorded.append(StateChange(state=JobState.RUNNING, phase=report.phase))
        attempt.progress = _merge(attempt.progress, report)


def _merge(progress: JobProgress, report: Advanced | Metrics) -> JobProgress:
    known = {name: getattr(report, name, None) for name in vars(progress)}
    return replace(progress, **{name: value for name, value in known.items() if value is not None})


def _io_failure(error: OSError) -> WorkFailure:
    """A file that the worker could not read or write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = DiskFull()
        return WorkFailure(full.code, full.message, full.hint)
    log.error("A file can't be read or written", exc_info=error)
    return WorkFailure("internal_error", f"The worker failed: {error}", "See the worker's log.")


def _failure(ended: Ended) -> WorkFailure:
    return WorkFailure(
        ended.code or "job_failed", ended.message or "The training process failed.", ended.hint
    )


def _death(child: ChildProcess) -> WorkFailure:
    status = child.exit_status
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        memory = " The system may have run out of memory." if -status == signal.SIGKILL else ""
        message = f"The training process was killed by signal {-status} ({name}).{memory}"
    else:
        last = (child.log_tail().strip().splitlines() or ["it printed nothing"])[-1]
        message = f"The training process ended with status {status} before it was done: {last}"
    return WorkFailure("process_died", message, "POST /jobs/{id}/retry goes on from the last checkpoint.")
