"""Brings what an attempt at a job records to one tracker.

The tracker gets what the database has of the job, in order, as fast as it takes it: after an outage it gets
the points of that time, too. Nothing waits for it but this thread. From the end of the attempt on it has
`tracker_end_seconds` to take the rest.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.errors.work import LeaseLost
from app.core.jobs import tracking
from app.core.jobs.events import Log, Warn
from app.core.jobs.queue import JobLease
from app.core.jobs.tracking import TrackedRun
from app.core.settings import Settings
from app.core.specs.states import JobState
from app.core.specs.tracking import Tracker
from app.core.storage.database import Database
from app.core.storage.outages import is_unavailable
from worker.processes.redaction import redact
from worker.trackers.messages import Deliver, Finish, TrackingRequest
from worker.trackers.points import make_point
from worker.trackers.process import TrackerProblem, TrackerProcess
from worker.trackers.runs import PACKAGES

log = logging.getLogger(__name__)

# A pipe takes 64 KiB before its writer waits, and a point has less than 1 KiB.
_POINTS_AT_ONCE = 50
_LOOK_SECONDS = 1.0
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 5.0, 300.0

Given = ParamSpec("Given")
Found = TypeVar("Found")


class Follower(threading.Thread):
    """Follows one attempt at a job. `module`: that of the tracking process; None: the package is missing."""

    def __init__(
        self, settings: Settings, database: Database, lease: JobLease, tracker: Tracker, *, module: str | None
    ) -> None:
        super().__init__(daemon=True, name=f"{tracker} of {lease.job_id}")
        self.lease = lease
        self.tracker = tracker
        self._settings = settings
        self._database = database
        self._module = module
        self._hurried = threading.Event()
        self._deadline: float | None = None
        self._end: JobState | None = None
        self._problem: str | None = None
        self._has_warned = False

    def hurry(self, seconds: float) -> None:
        """End within this time, whatever is left to deliver."""
        self._limit(seconds)
        self._hurried.set()

    def run(self) -> None:
        """Follow the attempt to its end. Nothing that goes wrong here concerns the job."""
        try:
            run = self._write(tracking.begin, self.lease, self.tracker)
            if self._module is None:
                problem = _explain_missing(self.tracker)
                warning = Warn(code="tracker_missing", message=problem)
                self._write(tracking.record_problem, run, problem, warning)
            else:
                self._follow(run, self._module)
        except LeaseLost:
            log.info("Job %s: deleted, or another worker's; %s ends here", self.lease.job_id, self.tracker)
        except Exception:  # the boundary of the thread: the job goes on
            log.exception("Job %s: %s can't be followed", self.lease.job_id, self.tracker)

    def _follow(self, run: TrackedRun, module: str) -> None:
        """Deliver everything, with a new process after each problem, until time is up. Raises LeaseLost."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            before = run.seq
            try:
                return self._deliver_all(run, module)
            except TrackerProblem as problem:
                run = self._write(tracking.read, run)
                self._tell_problem(run, str(problem))
            delay = _FIRST_RETRY_SECONDS if run.seq > before else min(2 * delay, _LAST_RETRY_SECONDS)
            if not self._wait_to_retry(run, delay):
                return self._give_up(run)

    def _deliver_all(self, run: TrackedRun, module: str) -> None:
        """Deliver everything with one process. Raises LeaseLost, TrackerProblem."""
        folder = self._settings.job_folder(self.lease.job_id)
        with TrackerProcess(
            self._make_request(run),
            folder / f"attempt-{self.lease.attempt}-{self.tracker}.log",
            environment=default_environment(self._settings),
            find_deadline=partial(self._find_deadline, run),
            module=module,
        ) as process:
            opened = process.wait_until_open()
            run = self._write(tracking.record_opened, run, run_id=opened.run_id, url=opened.url)
            self._tell_recovery(run)
            run = self._deliver_points(process, run)
            state = self._end or JobState.QUEUED
            process.finish(Finish(state=state), self._settings.tracker_end_seconds)
        self._write(tracking.record_closed, run)

    def _deliver_points(self, process: TrackerProcess, run: TrackedRun) -> TrackedRun:
        """Deliver points as they are recorded, to the attempt's end. Raises LeaseLost, TrackerProblem."""
        while True:
            found, end = self._look(tracking.find_next, run, limit=_POINTS_AT_ONCE)
            self._note_end(end)
            if found:
                points = [make_point(event) for event in found if run.lacks(event)]
                if points:
                    process.deliver(Deliver(points=points))
                run = self._write(tracking.record_delivered, run, found)
            elif end is not None or self._hurried.is_set():
                return run
            else:
                self._hurried.wait(_LOOK_SECONDS)

    def _make_request(self, run: TrackedRun) -> TrackingRequest:
        job_id, spec = self.lease.job_id, self.lease.spec
        return TrackingRequest(
            tracker=self.tracker,
            job_id=job_id,
            project=spec.tracking.project,
            run_name=spec.tracking.run_name or spec.name or job_id,
            entity=spec.tracking.entity,
            tags=spec.tracking.tags,
            config={"job": job_id, **spec.model_dump(mode="json", exclude={"tracking", "report_to"})},
            run_id=run.run_id,
            has_begun=run.run_id is not None,
            folder=self._settings.job_folder(job_id),
        )

    def _tell_problem(self, run: TrackedRun, problem: str) -> None:
        """Record the problem. The first one of the attempt is a warning of the job."""
        self._problem = problem = f"{redact(problem).rstrip('.')}."
        log.info("Job %s: %s: %s", self.lease.job_id, self.tracker, problem)
        name, seconds = self.tracker.label, self._settings.tracker_end_seconds
        warning = Warn(
            code="tracker_failed",
            message=f"{name} can't be written: {problem} The job goes on. {name} is tried again, until "
            f"{seconds:.0f} s after the end of this attempt.",
        )
        entry = None if self._has_warned else warning
        self._has_warned = True
        self._write(tracking.record_problem, run, problem, entry)

    def _tell_recovery(self, run: TrackedRun) -> None:
        if self._problem is None:
            return
        self._problem = None
        line = Log(message=f"{self.tracker.label} can be written again and gets all points of the job.")
        self._write(tracking.record_problem, run, None, line)

    def _give_up(self, run: TrackedRun) -> None:
        """Record what the tracker lacks. The warning was given before."""
        missing = self._write(tracking.count_missing, run)
        lacks = f"lacks {missing:,} points of the job" if missing else "may lack the end of the run"
        message = f"{self.tracker.label} {lacks}: {self._problem}"
        if self.tracker is Tracker.WANDB:
            folder = self._settings.job_folder(self.lease.job_id) / "wandb"
            message += f" On the worker's machine, `wandb sync` uploads what is in {folder}."
        self._write(tracking.record_problem, run, message, Log(message=message))

    def _wait_to_retry(self, run: TrackedRun, seconds: float) -> bool:
        """Wait so long; returns whether there is time left for another try. Raises LeaseLost."""
        until = time.monotonic() + seconds
        while not self._hurried.is_set():
            deadline = self._find_deadline(run)
            if deadline is not None and time.monotonic() >= deadline:
                return False
            remaining = until - time.monotonic()
            if remaining <= 0:
                return True
            self._hurried.wait(min(_LOOK_SECONDS, remaining))
        return False

    def _find_deadline(self, run: TrackedRun) -> float | None:
        """When time is up, by time.monotonic; None while the attempt goes on. Raises LeaseLost."""
        if self._end is None:
            self._note_end(self._look(tracking.find_end, run))
        return self._deadline

    def _note_end(self, end: JobState | None) -> None:
        if self._end is None and end is not None:
            self._end = end
            self._limit(self._settings.tracker_end_seconds)

    def _limit(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._deadline = min(deadline, self._deadline or deadline)

    def _look(
        self,
        read: Callable[Concatenate[Session, Given], Found],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Found:
        """Read from the database, again while it is away."""
        return self._patiently(self._database.snapshot, lambda session: read(session, *args, **options))

    def _write(
        self,
        change: Callable[Concatenate[Session, Given], Found],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Found:
        """Run `change` in a transaction, again while the database is away. Raises LeaseLost."""
        return self._patiently(self._database.transaction, lambda session: change(session, *args, **options))

    def _patiently(
        self, begin: Callable[[], AbstractContextManager[Session]], act: Callable[[Session], Found]
    ) -> Found:
        while True:
            try:
                with begin() as session:
                    return act(session)
            except SQLAlchemyError as error:
                if not is_unavailable(error) or self._hurried.is_set():
                    raise
            self._hurried.wait(_LOOK_SECONDS)


def default_environment(settings: Settings) -> dict[str, str]:
    """Variables of a tracking process besides those of the worker, which has precedence; it gets no GPU."""
    folder = settings.data_dir.resolve() / "trackers"
    defaults = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        # A new process tries again after these.
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    unset = {name: value for name, value in defaults.items() if name not in os.environ}
    return {**unset, "CUDA_VISIBLE_DEVICES": ""}


def _explain_missing(tracker: Tracker) -> str:
    return (
        f"The worker has no package {PACKAGES[tracker]}, so {tracker.label} gets nothing of this job. "
        f"Install `tunesmith[{tracker}]` for the worker, and start it again."
    )
