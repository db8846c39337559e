"""Jobs, as the runner needs to know them: their training child, their events, and their adapter."""

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.adapters.files import recorded_general_path
from app.core.engine import workers
from app.core.errors.jobs import DiskFull, JobFailure
from app.core.jobs import checkpoints, pushes, queue
from app.core.jobs.events import AnyEventData, Checkpoint, Metrics, StateChange
from app.core.jobs.placement import Host
from app.core.jobs.queue import JobLease, JobProgress
from app.core.settings import Settings
from app.core.specs.states import JobState, StopRequest
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from worker.processes.child_process import ChildProcess
from worker.processes.lease_heartbeat import LeaseHeartbeat
from worker.processes.prewarmed import DRIVER_MODULE, LAUNCHER_MODULE, PrewarmedTrainer
from worker.processes.reports import (
    Advanced,
    CheckpointAdapterSaved,
    Ended,
    Happened,
    Outcome,
    Report,
    report_adapter,
)
from worker.runners import checkpoint_adapters, job_inputs, stored_checkpoints
from worker.runners.checkpoint_uploads import CheckpointUploads
from worker.runners.work_handler import WorkHandler
from worker.runners.work_runner import WorkRunner
from worker.trackers.followers import Followers

log = logging.getLogger(__name__)


class DeviceReservations(Protocol):
    """The devices of the worker, as jobs use them."""

    def reserve(self, job_id: str) -> AbstractContextManager[bool]:
        """Makes room on the job's devices while the context lasts; yields whether the job has all of them."""

    def environment(self, job_id: str) -> dict[str, str]:
        """The environment of a process that sees the job's devices alone."""

    def next_environment(self) -> dict[str, str] | None:
        """The environment that the next job of one device will have; None where that is unknown."""

    def describe_host(self) -> Host:
        """What is free for jobs now."""


class JobHandler(WorkHandler[JobLease, Report, Ended]):
    """Jobs. The child trains; its checkpoint adapters are stored while it goes on."""

    reports = report_adapter
    disk_full = DiskFull()
    failure_code = "internal_error"

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        device: DeviceReservations,
        *,
        worker_id: str,
        prewarmed: PrewarmedTrainer,
        followers: Followers,
        stop: threading.Event,
        launcher_module: str = LAUNCHER_MODULE,
    ) -> None:
        self.queue = _WorkerQueue(worker_id, settings, device, stop)
        self.stop_grace_seconds = settings.shutdown_grace_seconds
        self._settings = settings
        self._database = database
        self._store = store
        self._device = device
        self._prewarmed = prewarmed
        self._launcher_module = launcher_module
        self._followers = followers
        self._stop = stop
        self._uploads = CheckpointUploads(settings, database, store)

    def describe(self, lease: JobLease) -> str:
        return f"Job {lease.job_id}"

    @contextmanager
    def start(self, lease: JobLease) -> Iterator[ChildProcess]:
        log.info("Job %s: attempt %d", lease.job_id, lease.attempt)
        job_inputs.remove_leftovers(self._settings, self._database, self._store, lease)
        stored_checkpoints.restore(self._settings, self._database, self._store, lease)
        with ExitStack() as hold:
            request = job_inputs.make_request(self._settings, self._database, self._store, lease, hold)
            log_path = request.job_folder / f"attempt-{lease.attempt}.log"
            self._followers.follow(lease)
            is_alone = hold.enter_context(self._device.reserve(lease.job_id))
            request = request.model_copy(update={"is_alone": is_alone})
            environment = self._device.environment(lease.job_id)
            if lease.spec.resources.nodes > 1:
                yield ChildProcess(DRIVER_MODULE, request, log_path, environment=environment)
            elif lease.spec.resources.gpus > 1:
                yield ChildProcess(self._launcher_module, request, log_path, environment=environment)
            else:
                yield self._prewarmed.start(request, log_path, environment=environment)

    def find_ending(self, report: Report) -> Ended | WorkFailure | None:
        if not isinstance(report, Ended) or report.outcome is Outcome.STOPPED:
            return None
        if report.outcome is Outcome.FINISHED:
            return report
        message = report.message or "The training process failed."
        return WorkFailure(report.code or "job_failed", message, report.hint)

    def record(self, session: Session, lease: JobLease, reports: Sequence[Report]) -> None:
        entries: list[AnyEventData] = []
        progress = JobProgress()
        phase = queue.find_phase(session, lease)
        for report in reports:
            if isinstance(report, Happened):
                entries.append(report.event)
                if isinstance(report.event, Metrics):
                    progress = _merge(progress, report.event)
            elif isinstance(report, Advanced):
                if report.phase not in (None, phase):
                    phase = report.phase
                    entries.append(StateChange(state=JobState.RUNNING, phase=phase))
                progress = _merge(progress, report)
        queue.record(session, lease, entries, progress)
        steps = [entry.step for entry in entries if isinstance(entry, Checkpoint)]
        if steps:
            checkpoints.record_written(session, lease, steps[-1], workers.name_host())

    def follow_up(self, lease: JobLease, report: Report, heartbeat: LeaseHeartbeat) -> None:
        if isinstance(report, CheckpointAdapterSaved):
            checkpoint_adapters.deliver(self._store, heartbeat, lease, report)
        elif isinstance(report, Happened) and isinstance(report.event, Checkpoint):
            self._uploads.add(lease, heartbeat, report.event.step)
        # Not earlier: until its first step, which has a loss, a job needs the processor itself.
        elif isinstance(report, Advanced) and report.loss is not None and not self._stop.is_set():
            environment = self._device.next_environment()
            if environment is not None:
                self._prewarmed.prepare(environment)

    def artifact(self, lease: JobLease) -> str:
        return adapter_records.name_artifact(lease.job_id, lease.attempt)[1]

    def deliver(
        self, lease: JobLease, result: Ended, announce: Callable[[Report], None]
    ) -> Callable[[Session], None]:
        adapter_id, artifact = adapter_records.name_artifact(lease.job_id, lease.attempt)
        folder = job_inputs.output_folder(self._settings, lease)
        general_path = recorded_general_path(folder)
        size_bytes = self._store.put_folder(artifact, folder)

        def succeed(session: Session) -> None:
            adapter = adapter_records.add(
                session,
                adapter_id,
                spec=lease.spec,
                job_id=lease.job_id,
                artifact=artifact,
                size_bytes=size_bytes,
                general_path=general_path,
            )
            queue.succeed(session, lease, adapter_name=adapter.name)
            pushes.submit(session, lease, adapter)
            checkpoints.forget_all(session, lease.job_id)

        return succeed

    def finish_copies(self, lease: JobLease, *, timeout_seconds: float) -> None:
        self._uploads.finish(lease, timeout_seconds)

    def delivered(self, lease: JobLease) -> None:
        self._uploads.drop(lease)
        job_inputs.remove_checkpoints(self._settings.job_folder(lease.job_id))
        self._store.discard(checkpoints.name_folder(lease.job_id))

    def explain(self, error: Exception) -> WorkFailure:
        if isinstance(error, JobFailure):
            return WorkFailure.of(error)
        what = f"{error}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return WorkFailure(self.failure_code, f"The worker failed: {what}", "See the worker's log.")

    def explain_death(self, child: ChildProcess) -> WorkFailure:
        hint = "POST /jobs/{id}/retry goes on from the last checkpoint."
        status = child.exit_status
        if status is None or status >= 0:
            return WorkFailure("process_died", f"The training process {child.describe_death()}", hint)
        name = signal.Signals(-status).name
        memory = " The system may have run out of memory." if -status == signal.SIGKILL else ""
        message = f"The training process was killed by signal {-status} ({name}).{memory}"
        return WorkFailure("process_died", message, hint)

    def clean_up(self, lease: JobLease) -> None:
        self._uploads.drop(lease)
        shutil.rmtree(job_inputs.output_folder(self._settings, lease), ignore_errors=True)


JobRunner = WorkRunner[JobLease, Report, Ended]


class _WorkerQueue:
    """The queue of jobs as one worker uses it. What it requeues and releases may be paused or cancelled."""

    def __init__(
        self, worker_id: str, settings: Settings, device: DeviceReservations, stop: threading.Event
    ) -> None:
        self._worker_id = worker_id
        self._settings = settings
        self._device = device
        self._stop = stop

    def claim(self, session: Session, *, lease_seconds: float, max_attempts: int) -> JobLease | None:
        queue.requeue_expired(session, max_lost_attempts=max_attempts)
        host = self._device.describe_host()
        return queue.claim(session, self._worker_id, lease_seconds=lease_seconds, host=host)

    def heartbeat(self, session: Session, lease: JobLease, *, lease_seconds: float) -> None:
        queue.heartbeat(session, lease, lease_seconds=lease_seconds)

    def find_stop_request(self, session: Session, lease: JobLease) -> StopRequest | None:
        return queue.find_stop_request(session, lease)

    def release(self, session: Session, lease: JobLease) -> None:
        reason = "The worker is shutting down." if self._stop.is_set() else "Resumed while it stopped."
        queue.release(session, lease, reason=reason)

    def give_up_attempt(
        self, session: Session, lease: JobLease, failure: WorkFailure, *, max_attempts: int
    ) -> None:
        queue.give_up_attempt(session, lease, failure, max_lost_attempts=max_attempts)

    def fail(self, session: Session, lease: JobLease, failure: WorkFailure) -> None:
        queue.fail(session, lease, failure)


def _merge(progress: JobProgress, report: Advanced | Metrics) -> JobProgress:
    known = {name: getattr(report, name, None) for name in vars(progress)}
    return replace(progress, **{name: value for name, value in known.items() if value is not None})
