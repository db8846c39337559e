"""Runs one claimed fetch of a Hub dataset: starts its child, stores the rows, says truthfully how it ended.

The child never touches the database; this process owns the lease and does all the writing.
"""

import errno
import logging
import shutil
import threading
from functools import partial

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.core.datasets.fetches import DatasetFailure, FetchLease, fetch_queue
from app.core.datasets.inspection import Inspection
from app.core.datasets.limits import Limits
from app.core.errors.datasets import DatasetDiskFull
from app.core.errors.work import LeaseLost
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from worker.fetching.reports import Fetched, FetchFailed, Fetching, FetchRequest, fetch_report_adapter
from worker.processes.child_process import ChildProcess
from worker.processes.child_watch import last_words, watch
from worker.processes.lease_heartbeat import LeaseKeeper

log = logging.getLogger(__name__)

FETCHING_MODULE = "worker.fetching.run"


class FetchRunner:
    """Fetches datasets, one at a time, until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        *,
        stop: threading.Event,
        fetching_module: str = FETCHING_MODULE,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._stop = stop
        self._module = fetching_module

    def claim(self) -> FetchLease | None:
        """The next fetch to run, or None."""
        settings = self._settings
        with self._database.transaction() as session:
            return fetch_queue.claim(
                session, lease_seconds=settings.lease_seconds, max_attempts=settings.max_lost_attempts
            )

    def run(self, lease: FetchLease) -> None:
        """Run one fetch to its end and record how it ended. Only a lost lease leaves no record."""
        what = f"Dataset {lease.dataset_id}"
        log.info("%s: fetching %s", what, lease.source.hub_dataset)
        seconds = self._settings.lease_seconds
        renew = partial(fetch_queue.heartbeat, lease=lease, lease_seconds=seconds)
        request = self._make_request(lease)
        with LeaseKeeper(self._database, what, seconds, renew) as keeper:
            try:
                self._remove_leftovers()
                request.folder.mkdir(parents=True)
                self._fetch(lease, request, keeper)
            except LeaseLost:
                log.warning("%s: deleted, or another worker fetches it now; rows dropped", what)
            except Exception as error:  # the boundary: whatever it was, it must not stay in `fetching`
                log.exception("%s: the worker failed", what)
                _fail(lease, keeper, _failure(error))
            finally:
                shutil.rmtree(request.folder, ignore_errors=True)

    def _make_request(self, lease: FetchLease) -> FetchRequest:
        return FetchRequest(
            source=lease.source,
            column_map=lease.column_map,
            on_problem=lease.on_problem,
            limits=Limits.from_settings(self._settings),
            folder=self._settings.data_dir / "fetches" / lease.token,
        )

    def _remove_leftovers(self) -> None:
        """Remove the folders of workers that died."""
        with self._database.snapshot() as session:
            tokens = fetch_queue.find_tokens(session)
        for folder in (self._settings.data_dir / "fetches").glob("*"):
            if folder.name not in tokens:
                shutil.rmtree(folder, ignore_errors=True)

    def _fetch(self, lease: FetchLease, request: FetchRequest, keeper: LeaseKeeper) -> None:
        caches = {name: str(request.folder / "cache") for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE")}
        log_path = self._settings.data_dir / "logs" / "fetches.log"
        child = ChildProcess(self._module, request, log_path, environment=caches)
        ended = watch(
            child,
            stop=self._stop,
            grace_seconds=self._settings.cancel_grace_seconds,
            take=lambda line: self._take(lease, line, keeper),
            look=lambda: self._check(lease, keeper),
        )
        if isinstance(ended, Fetched):
            self._deliver(lease, request, ended.found, keeper)
        elif isinstance(ended, FetchFailed):
            problems = tuple(ended.problems)
            error = DatasetFailure(ended.code, ended.message, ended.hint, problems, ended.problem_count)
            _fail(lease, keeper, error)
        elif self._stop.is_set():
            keeper.write(lambda session: fetch_queue.release(session, lease))
        else:
            self._lose(lease, child, keeper)

    def _take(self, lease: FetchLease, line: bytes, keeper: LeaseKeeper) -> Fetched | FetchFailed | None:
        """Write down how far the child is, or answer that it has ended."""
        report = fetch_report_adapter.validate_json(line)
        if not isinstance(report, Fetching):
            return report
        self._check(lease, keeper, report)
        return None

    def _check(self, lease: FetchLease, keeper: LeaseKeeper, report: Fetching | None = None) -> None:
        """Write down how far the child is, where it said so. Raises LeaseLost."""
        if keeper.is_lost:
            raise LeaseLost
        try:
            if report:
                with self._database.transaction() as session:
                    fetch_queue.record(session, lease, commit=report.commit, rows=report.rows)
            else:
                with self._database.snapshot() as session:
                    fetch_queue.check(session, lease)
        except DBAPIError as error:
            log.warning("Dataset %s: the database does not answer: %s", lease.dataset_id, error.orig)

    def _deliver(
        self, lease: FetchLease, request: FetchRequest, found: Inspection, keeper: LeaseKeeper
    ) -> None:
        """Put the rows into the store, then name them in a transaction."""
        # Of its own for each attempt: another worker may be at the same dataset.
        folder = f"datasets/{lease.dataset_id}/{lease.token}"
        artifact = f"{folder}/rows.jsonl"

        def finish(session: Session) -> None:
            fetch_queue.finish(session, lease, found, artifact=artifact)

        try:
            self._store.put_file(artifact, request.rows)
            keeper.write(finish)
        except BaseException:
            self._store.delete(folder)
            raise
        log.info("Dataset %s: %d rows", lease.dataset_id, found.rows)

    def _lose(self, lease: FetchLease, child: ChildProcess, keeper: LeaseKeeper) -> None:
        """The child died without a word."""
        message = f"The fetching process {last_words(child)}"
        failure = DatasetFailure("process_died", message, "POST /datasets tries again.")
        log.warning("Dataset %s: %s", lease.dataset_id, message)
        most = self._settings.max_lost_attempts
        keeper.write(lambda session: fetch_queue.give_up_attempt(session, lease, failure, max_attempts=most))


def _failure(error: Exception) -> DatasetFailure:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = DatasetDiskFull()
        return DatasetFailure(full.code, full.message, full.hint)
    return DatasetFailure("fetch_failed", f"The worker failed: {error}", "See the worker's log.")


def _fail(lease: FetchLease, keeper: LeaseKeeper, error: DatasetFailure) -> None:
    log.warning("Dataset %s: failed, %s: %s", lease.dataset_id, error.code, error.message)
    keeper.write(lambda session: fetch_queue.fail(session, lease, error))
