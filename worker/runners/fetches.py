"""Fetches of Hub datasets, as the runner needs to know them: their child, and the rows they end with."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.orm import Session

from app.core.datasets.fetches import DatasetFailure, FetchLease, fetch_queue
from app.core.datasets.limits import Limits
from app.core.errors.datasets import DatasetDiskFull
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from worker.fetching.reports import (
    Fetched,
    FetchFailed,
    Fetching,
    FetchReport,
    FetchRequest,
    fetch_report_adapter,
)
from worker.processes.child_process import ChildProcess
from worker.runners.work_handler import WorkHandler
from worker.runners.work_runner import WorkRunner

log = logging.getLogger(__name__)

FETCHING_MODULE = "worker.fetching.run"


class FetchHandler(WorkHandler[FetchLease, FetchReport, Fetched]):
    """Fetches of datasets from the Hub."""

    queue = fetch_queue
    reports = fetch_report_adapter
    disk_full = DatasetDiskFull()
    failure_code = "fetch_failed"

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        *,
        module: str = FETCHING_MODULE,
    ) -> None:
        self.stop_grace_seconds = settings.cancel_grace_seconds
        self._settings = settings
        self._database = database
        self._store = store
        self._module = module
        self._root = settings.data_dir / "fetches"

    def describe(self, lease: FetchLease) -> str:
        return f"Dataset {lease.dataset_id}"

    @contextmanager
    def start(self, lease: FetchLease) -> Iterator[ChildProcess]:
        log.info("Dataset %s: fetching %s", lease.dataset_id, lease.source.hub_dataset)
        self._remove_leftovers()
        request = self._make_request(lease)
        request.folder.mkdir(parents=True)
        caches = {name: str(request.folder / "cache") for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE")}
        log_path = self._settings.data_dir / "logs" / "fetches.log"
        yield ChildProcess(self._module, request, log_path, environment=caches)

    def find_ending(self, report: FetchReport) -> Fetched | WorkFailure | None:
        if isinstance(report, FetchFailed):
            problems = tuple(report.problems)
            return DatasetFailure(
                report.code,
                report.message,
                report.hint,
                problems=problems,
                problem_count=report.problem_count,
                unused_fields=tuple(report.unused_fields),
            )
        return report if isinstance(report, Fetched) else None

    def record(self, session: Session, lease: FetchLease, reports: Sequence[FetchReport]) -> None:
        last = reports[-1]
        assert isinstance(last, Fetching)
        fetch_queue.record(session, lease, commit=last.commit, rows=last.rows)

    def artifact(self, lease: FetchLease) -> str:
        return lease.folder

    def deliver(
        self, lease: FetchLease, result: Fetched, announce: Callable[[FetchReport], None]
    ) -> Callable[[Session], None]:
        artifact = f"{lease.folder}/rows.jsonl"
        self._store.put_file(artifact, self._make_request(lease).rows)
        return lambda session: fetch_queue.finish(session, lease, result.found, artifact=artifact)

    def explain_death(self, child: ChildProcess) -> WorkFailure:
        message = f"The fetching process {child.describe_death()}"
        return WorkFailure("process_died", message, "POST /datasets tries again.")

    def clean_up(self, lease: FetchLease) -> None:
        shutil.rmtree(self._folder(lease), ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Remove the folders of workers that died."""
        # Listed before the rows are read: the folder of a fetch that begins meanwhile is no leftover.
        folders = list(self._root.glob("*"))
        with self._database.snapshot() as session:
            tokens = fetch_queue.find_tokens(session)
        for folder in folders:
            if folder.name not in tokens:
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, lease: FetchLease) -> Path:
        return self._root / lease.token

    def _make_request(self, lease: FetchLease) -> FetchRequest:
        return FetchRequest(
            source=lease.source,
            column_map=lease.column_map,
            on_problem=lease.on_problem,
            on_unused=lease.on_unused,
            limits=Limits.from_settings(self._settings),
            folder=self._folder(lease),
        )


FetchRunner = WorkRunner[FetchLease, FetchReport, Fetched]
