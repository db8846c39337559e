"""The worker process: registers, keeps the engine running, runs jobs and other work, and unregisters.

It never imports torch, so that it stays small and nothing that a model does can end it.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from types import FrameType
from typing import Any, TypeVar

import psutil
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.jobs import queue
from app.core.jobs.queue import JobLease
from app.core.settings import EngineKind, Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database, is_migrated, refuse_newer
from app.core.storage.outages import describe, log_unless_away
from worker.doctor.process import Examination
from worker.host_devices import HostDevices, Probe, has_ray, new_worker_id
from worker.processes.engine_process import ENGINE_MODULE
from worker.processes.prewarmed import LAUNCHER_MODULE, TRAINING_MODULE, PrewarmedTrainer, remove_leftovers
from worker.runners.downloads import DownloadHandler
from worker.runners.evaluations import EVALUATING_MODULE, EvaluationHandler
from worker.runners.exports import EXPORTING_MODULE, ExportHandler
from worker.runners.fetches import FETCHING_MODULE, FetchHandler
from worker.runners.jobs import JobHandler
from worker.runners.work_runner import WorkRunner
from worker.trackers.followers import Followers

log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0  # between looks at an empty queue

Work = TypeVar("Work")


class Role(StrEnum):
    """What a worker does."""

    TRAIN = "train"
    SERVE = "serve"
    CLUSTER = "cluster"  # jobs over several hosts, which need no device of the worker


class Supervisor:
    """One worker. `run()` returns after a signal, when all work is released."""

    def __init__(
        self,
        settings: Settings,
        roles: frozenset[Role],
        *,
        training_module: str = TRAINING_MODULE,
        launcher_module: str = LAUNCHER_MODULE,
        engine_module: str = ENGINE_MODULE,
        fetching_module: str = FETCHING_MODULE,
        exporting_module: str = EXPORTING_MODULE,
        evaluating_module: str = EVALUATING_MODULE,
        make_examination: Callable[[Callable[[], None]], Examination] | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.id = new_worker_id()
        self._settings = settings
        if Role.TRAIN in roles and settings.ray_address and has_ray():
            roles |= {Role.CLUSTER}
        self._roles = roles
        self._database = Database(settings.database_url)
        self._stop = threading.Event()
        self._beat_now = threading.Event()
        self._device_freed = threading.Event()
        self._job_threads: list[threading.Thread] = []
        self._devices = HostDevices(
            settings,
            self._database,
            worker_id=self.id,
            trains=Role.TRAIN in roles,
            serves=Role.SERVE in roles,
            clusters=Role.CLUSTER in roles,
            on_change=self._beat_now.set,
            stop=self._stop,
            engine_module=engine_module,
            probe=probe,
        )
        store = ArtifactStore(settings.artifacts_url)
        self._examination = make_examination(self._beat_now.set) if make_examination else None
        self._prewarmed = PrewarmedTrainer(settings, self.id, module=training_module)
        self._followers = Followers(settings, self._database)
        jobs = JobHandler(
            settings,
            self._database,
            store,
            self._devices,
            worker_id=self.id,
            prewarmed=self._prewarmed,
            followers=self._followers,
            stop=self._stop,
            launcher_module=launcher_module,
        )
        self._jobs = WorkRunner(settings, self._database, store, jobs, stop=self._stop)
        # These run while a job trains, each kind in a thread of its own.
        fetches = FetchHandler(settings, self._database, store, module=fetching_module)
        exports = ExportHandler(settings, self._database, store, self._idle_gpu, module=exporting_module)
        downloads = DownloadHandler(settings, self._beat_now.set)
        evaluations = EvaluationHandler(settings, self._database, store, module=evaluating_module)
        self._evaluations = WorkRunner(settings, self._database, store, evaluations, stop=self._stop)
        self._concurrent: dict[str, WorkRunner[Any, Any, Any]] = {
            "fetches": WorkRunner(settings, self._database, store, fetches, stop=self._stop),
            "exports": WorkRunner(settings, self._database, store, exports, stop=self._stop),
            "downloads": WorkRunner(settings, self._database, store, downloads, stop=self._stop),
        }

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._remove_dead_workers()
        self._devices.start()
        log.info("Worker %s (%s) on %s", self.id, ", ".join(sorted(self._roles)), self._devices.names)
        threads = [threading.Thread(target=self._beat, daemon=True, name="heartbeat")]
        concurrent = dict(self._concurrent) if Role.TRAIN in self._roles else {}
        if Role.SERVE in self._roles:
            concurrent["evaluations"] = self._evaluations
        for name, runner in concurrent.items():
            work = (runner.claim, runner.run)
            threads.append(threading.Thread(target=self._run_work, args=work, daemon=True, name=name))
        if Role.SERVE in self._roles and self._settings.engine is EngineKind.BUILTIN:
            sharing = threading.Thread(
                target=self._devices.share_with_others, daemon=True, name="jobs of others"
            )
            threads.append(sharing)
        for thread in threads:
            thread.start()
        if self._examination:
            self._examination.start()
        try:
            self._run_jobs()
        finally:
            self._stop.set()
            for thread in self._job_threads:
                thread.join()
            self._beat_now.set()
            self._prewarmed.close()
            self._followers.close()
            for thread in threads:
                thread.join()
            if self._examination:
                self._examination.stop()
            self._devices.stop()
            self._leave()
            log.info("Worker %s has stopped", self.id)

    def _prewarm(self) -> None:
        # Not while the engine starts, which would take longer then.
        if Role.TRAIN not in self._roles or not self._devices.all_engines_listen:
            return
        environment = self._devices.next_environment()
        if environment is not None:
            self._prewarmed.prepare(environment)

    def _run_jobs(self) -> None:
        """Claim jobs for devices that are free, and run each in a thread, until the worker stops."""
        while not self._stop.is_set():
            self._device_freed.clear()
            with self._devices.placing:
                lease = self._claim_unless_away(self._claim_job)
                if lease is not None:
                    self._devices.take(lease.job_id, lease.gpus)
            if lease is not None:
                thread = threading.Thread(target=self._run_job, args=(lease,), name=f"job {lease.job_id}")
                self._job_threads = [one for one in self._job_threads if one.is_alive()] + [thread]
                thread.start()
                continue
            if self._devices.free:
                self._prewarm()
            self._device_freed.wait(_IDLE_SECONDS)

    @contextmanager
    def _idle_gpu(self, export_id: str) -> Iterator[str | None]:
        try:
            with self._devices.idle_gpu(export_id) as gpu:
                yield gpu
        finally:
            self._device_freed.set()

    def _run_job(self, lease: JobLease) -> None:
        try:
            self._jobs.run(lease)
        finally:
            self._devices.give_back(lease.job_id)
            self._device_freed.set()

    def _run_work(self, claim: Callable[[], Work | None], run: Callable[[Work], None]) -> None:
        """Claim and run one kind of work, one piece at a time, until the worker stops."""
        while not self._stop.is_set():
            lease = self._claim_unless_away(claim)
            if lease is None:
                self._stop.wait(_IDLE_SECONDS)
            else:
                run(lease)

    def _claim_unless_away(self, claim: Callable[[], Work | None]) -> Work | None:
        try:
            return claim()
        except SQLAlchemyError as error:
            log_unless_away(log, "Nothing can be claimed now", error)
            return None

    def _claim_job(self) -> JobLease | None:
        if (Role.TRAIN in self._roles and self._devices.free) or self._devices.takes_cluster_jobs:
            return self._jobs.claim()
        with self._database.transaction() as session:
            queue.requeue_expired(session, max_lost_attempts=self._settings.max_lost_attempts)
        return None

    def _beat(self) -> None:
        """Update the worker's row every third of a lease, and at once when the engine's address changes."""
        while not self._stop.is_set():
            self._beat_now.clear()
            failures = list(self._examination.failures) if self._examination else []
            # Outside of the transaction: it runs the driver's tool, and asks the engines for their state.
            reports = self._devices.report(sorted(self._roles), failures)
            try:
                with self._database.transaction() as session:
                    for report in reports:
                        workers.heartbeat(session, report)
                    deleted = _find_deleted(session, reports)
            except SQLAlchemyError as error:
                log_unless_away(log, "The worker's heartbeat failed", error)
            else:
                if deleted:
                    self._devices.unload(deleted)
            self._beat_now.wait(self._settings.lease_seconds / 3)

    def _remove_dead_workers(self) -> None:
        """Remove the rows of this host's killed workers, which look alive for one more lease."""
        remove_leftovers(self._settings, _was_killed_here)
        try:
            with self._database.transaction() as session:
                alive = workers.find_alive(session, lease_seconds=self._settings.lease_seconds)
                for worker_id in (worker.id for worker in alive if _was_killed_here(worker.id)):
                    log.info("Worker %s of this host is dead", worker_id)
                    workers.leave(session, worker_id)
        except SQLAlchemyError as error:
            log_unless_away(log, "Dead workers can't be looked for now", error)

    def _leave(self) -> None:
        try:
            with self._database.transaction() as session:
                for worker_id in {self.id, *self._devices.serving_ids}:
                    workers.leave(session, worker_id)
        except SQLAlchemyError as error:
            log.warning("The worker's row stays until it expires: %s", describe(error))
        self._database.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            log.warning("Second signal: ending at once; the job's lease will expire")
            os._exit(128 + number)
        log.info("%s: finishing the present step, then stopping", signal.Signals(number).name)
        self._stop.set()
        self._device_freed.set()  # nobody waits for one any more


def _find_deleted(session: Session, reports: Sequence[WorkerReport]) -> list[str]:
    """The adapters that an external engine has, and that are deleted; built-in ones evict them."""
    states = [report.engine_state for report in reports if report.engine_state]
    loaded = [adapter_id for state in states if state.is_external for adapter_id in state.adapters]
    return adapter_records.find_missing(session, loaded)


def wait_for_schema(settings: Settings, *, timeout_seconds: float) -> bool:
    """Wait until the API has brought the database to this version. Raises DatabaseTooNew."""
    database = Database(settings.database_url)
    waiting = threading.Event()
    try:
        for _ in range(max(1, int(timeout_seconds))):
            try:
                if is_migrated(database):
                    return True
                refuse_newer(database)
            except SQLAlchemyError as error:
                log.info("The database does not answer yet: %s", describe(error))
            waiting.wait(1)
        return False
    finally:
        database.close()


def _was_killed_here(worker_id: str) -> bool:
    """Whether a worker's id names a process of this host that has ended, or whose id is now this one's."""
    host, _, pid = worker_id.rpartition("-")[0].rpartition("-")
    return host == workers.name_host() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
