"""The worker process: registers, keeps the engine running, runs jobs, fetches and exports, and unregisters.

It never imports torch, so that it stays small and nothing that a model does can end it.
"""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import FrameType
from typing import Any, TypeVar

import psutil
from pydantic_core import from_json
from sqlalchemy.exc import DBAPIError

from app.core.engine import workers
from app.core.engine.preflight import PreflightRequest
from app.core.engine.workers import WorkerReport
from app.core.jobs import queue
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database, is_migrated, refuse_newer
from worker.doctor.process import Examination
from worker.models.files import hub_cache
from worker.planning import gpu_sharing
from worker.processes.engine_process import ENGINE_MODULE, EngineProcess
from worker.processes.gpu_stats import GpuStats
from worker.processes.prewarmed import TRAINING_MODULE, PrewarmedTrainer, remove_leftovers
from worker.runners.downloads import DownloadHandler
from worker.runners.exports import EXPORTING_MODULE, ExportHandler
from worker.runners.fetches import FETCHING_MODULE, FetchHandler
from worker.runners.jobs import JobHandler
from worker.runners.work_runner import WorkRunner

log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0  # between looks at an empty queue

Work = TypeVar("Work")


class Role(StrEnum):
    """What a worker does."""

    TRAIN = "train"
    SERVE = "serve"


class Supervisor:
    """One worker. `run()` returns after a signal, when all work is released."""

    def __init__(
        self,
        settings: Settings,
        roles: frozenset[Role],
        *,
        training_module: str = TRAINING_MODULE,
        engine_module: str = ENGINE_MODULE,
        fetching_module: str = FETCHING_MODULE,
        exporting_module: str = EXPORTING_MODULE,
        make_examination: Callable[[Callable[[], None]], Examination] | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._settings = settings
        self._roles = roles
        self._database = Database(settings.database_url)
        self._stop = threading.Event()
        self._beat_now = threading.Event()
        self._device: dict[str, Any] = {}
        self._gpu_stats = GpuStats()
        self._engine = (
            EngineProcess(settings, self._beat_now.set, module=engine_module) if Role.SERVE in roles else None
        )
        store = ArtifactStore(settings.artifacts_url)
        self._examination = make_examination(self._beat_now.set) if make_examination else None
        self._prewarmed = PrewarmedTrainer(settings, self.id, module=training_module)
        jobs = JobHandler(
            settings,
            self._database,
            store,
            self,
            worker_id=self.id,
            prewarmed=self._prewarmed,
            stop=self._stop,
        )
        self._jobs = WorkRunner(settings, self._database, store, jobs, stop=self._stop)
        # These run while a job trains, each kind in a thread of its own.
        fetches = FetchHandler(settings, self._database, store, module=fetching_module)
        exports = ExportHandler(settings, self._database, store, module=exporting_module)
        downloads = DownloadHandler(settings, self._beat_now.set)
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
        self._device = _probe_device()
        log.info("Worker %s (%s) on %s", self.id, ", ".join(sorted(self._roles)), self._device.get("name"))
        if self._engine:
            self._engine.start(self._device)
        threads = [threading.Thread(target=self._beat, daemon=True, name="heartbeat")]
        if Role.TRAIN in self._roles:
            for name, runner in self._concurrent.items():
                work = (runner.claim, runner.run)
                threads.append(threading.Thread(target=self._run_work, args=work, daemon=True, name=name))
        for thread in threads:
            thread.start()
        if self._examination:
            self._examination.start()
        try:
            self._run_work(self._claim_job, self._jobs.run, on_idle=self._prewarm)
        finally:
            self._stop.set()
            self._beat_now.set()
            self._prewarmed.close()
            for thread in threads:
                thread.join()
            if self._examination:
                self._examination.stop()
            if self._engine:
                self._engine.stop()
            self._leave()
            log.info("Worker %s has stopped", self.id)

    @contextmanager
    def reserve(self, job_id: str) -> Iterator[bool]:
        """Reserve the device for a job, as the GPU policy says; yields whether the job has all of it."""
        if self._engine is None:
            yield False  # another worker may serve on it
            return
        with gpu_sharing.reserve_device(
            self._engine,
            job_id,
            lambda: self._describe(job_id),
            policy=self._settings.gpu_policy,
            is_gpu=self._device.get("kind") == "cuda",
        ) as is_alone:
            yield is_alone

    def _describe(self, job_id: str) -> PreflightRequest:
        with self._database.snapshot() as session:
            return gpu_sharing.find_request(session, job_id)

    def _prewarm(self) -> None:
        # Not while the engine starts, which would take longer then.
        if Role.TRAIN in self._roles and (self._engine is None or self._engine.url):
            self._prewarmed.prepare()

    def _run_work(
        self,
        claim: Callable[[], Work | None],
        run: Callable[[Work], None],
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """Claim and run one kind of work until the worker stops; `on_idle` is called where there is none."""
        while not self._stop.is_set():
            try:
                lease = claim()
            except DBAPIError as error:
                log.warning("The database does not answer: %s", error.orig)
                lease = None
            if lease is None:
                on_idle()
                self._stop.wait(_IDLE_SECONDS)
            else:
                run(lease)

    def _claim_job(self) -> JobLease | None:
        if Role.TRAIN in self._roles:
            return self._jobs.claim()
        with self._database.transaction() as session:
            queue.requeue_expired(session, max_lost_attempts=self._settings.max_lost_attempts)
        return None

    def _beat(self) -> None:
        """Update the worker's row every third of a lease, and at once when the engine's address changes."""
        while not self._stop.is_set():
            self._beat_now.clear()
            report = self._report()  # outside of the transaction: it runs the driver's tool
            try:
                with self._database.transaction() as session:
                    workers.heartbeat(session, report)
            except DBAPIError as error:
                log.warning("The worker's heartbeat failed: %s", error.orig)
            self._beat_now.wait(self._settings.lease_seconds / 3)

    def _report(self) -> WorkerReport:
        engine = self._engine
        return WorkerReport(
            id=self.id,
            roles=sorted(self._roles),
            device=self._device | self._gpu_stats.read(self._device.get("kind")),
            engine_url=engine.url if engine else None,
            engine_token=engine.token if engine else None,
            engine_state=engine.read_state() if engine else None,
            problems=self._find_problems(),
            downloaded=hub_cache.list_downloaded(),
        )

    def _find_problems(self) -> list[str]:
        found = list(self._examination.failures) if self._examination else []
        return [*found, self._engine.problem] if self._engine and self._engine.problem else found

    def _remove_dead_workers(self) -> None:
        """Remove the rows of this host's killed workers, which look alive for one more lease."""
        remove_leftovers(self._settings, _was_killed_here)
        try:
            with self._database.transaction() as session:
                alive = workers.find_alive(session, lease_seconds=self._settings.lease_seconds)
                for worker_id in (worker.id for worker in alive if _was_killed_here(worker.id)):
                    log.info("Worker %s of this host is dead", worker_id)
                    workers.leave(session, worker_id)
        except DBAPIError as error:
            log.warning("The database does not answer: %s", error.orig)

    def _leave(self) -> None:
        try:
            with self._database.transaction() as session:
                workers.leave(session, self.id)
        except DBAPIError as error:
            log.warning("The worker's row stays until it expires: %s", error.orig)
        self._database.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            log.warning("Second signal: ending at once; the job's lease will expire")
            os._exit(128 + number)
        log.info("%s: finishing the present step, then stopping", signal.Signals(number).name)
        self._stop.set()


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
            except DBAPIError as error:
                log.info("The database does not answer yet: %s", error.orig)
            waiting.wait(1)
        return False
    finally:
        database.close()


def _was_killed_here(worker_id: str) -> bool:
    """Whether a worker's id names a process of this host that has ended, or whose id is now this one's."""
    host, _, pid = worker_id.rpartition("-")[0].rpartition("-")
    return host == socket.gethostname() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))


def _probe_device() -> dict[str, Any]:
    """Describe the device, in a short-lived process: torch would take memory here, of the GPU too."""
    probe = subprocess.run([sys.executable, "-m", "worker.models.device"], capture_output=True, check=False)
    if probe.returncode != 0:
        log.error("No device could be found: %s", probe.stderr.decode(errors="replace")[-1000:])
        return {}
    device: dict[str, Any] = from_json(probe.stdout)
    return device
