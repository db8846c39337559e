"""Downloads of base models, as the runner needs to know them. Their result is in the Hub's cache."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy.orm import Session

from app.core.base_models.queue import DownloadLease, download_queue
from app.core.errors.base_models import ModelDiskFull
from app.core.settings import Settings
from app.core.work.failures import WorkFailure
from worker.base_models.reports import (
    Downloaded,
    Downloading,
    DownloadRefused,
    DownloadReport,
    DownloadRequest,
    download_report_adapter,
)
from worker.processes.child_process import ChildProcess
from worker.runners.work_handler import WorkHandler
from worker.runners.work_runner import WorkRunner

log = logging.getLogger(__name__)

DOWNLOADING_MODULE = "worker.base_models.run"


class DownloadHandler(WorkHandler[DownloadLease, DownloadReport, Downloaded]):
    """Downloads of base models. `on_change` is called where the cache has changed."""

    queue = download_queue
    reports = download_report_adapter
    disk_full = ModelDiskFull()
    failure_code = "download_failed"

    def __init__(
        self, settings: Settings, on_change: Callable[[], None], *, module: str = DOWNLOADING_MODULE
    ) -> None:
        self.stop_grace_seconds = settings.cancel_grace_seconds
        self._settings = settings
        self._on_change = on_change
        self._module = module

    def describe(self, lease: DownloadLease) -> str:
        return f"Download {lease.key}"

    @contextmanager
    def start(self, lease: DownloadLease) -> Iterator[ChildProcess]:
        log.info("Download %s: %s", lease.key, lease.base_model)
        log_path = self._settings.data_dir / "logs" / "downloads.log"
        yield ChildProcess(self._module, DownloadRequest(base_model=lease.base_model), log_path)

    def find_ending(self, report: DownloadReport) -> Downloaded | WorkFailure | None:
        if isinstance(report, DownloadRefused):
            return WorkFailure(report.code, report.message, report.hint)
        return report if isinstance(report, Downloaded) else None

    def record(self, session: Session, lease: DownloadLease, reports: Sequence[DownloadReport]) -> None:
        last = reports[-1]
        assert isinstance(last, Downloading)
        download_queue.record(session, lease, done_bytes=last.done_bytes, total_bytes=last.total_bytes)

    def deliver(
        self, lease: DownloadLease, result: Downloaded, announce: Callable[[DownloadReport], None]
    ) -> Callable[[Session], None]:
        return lambda session: download_queue.finish(session, lease, total_bytes=result.total_bytes)

    def explain_death(self, child: ChildProcess) -> WorkFailure:
        message = f"The downloading process {child.describe_death()}"
        hint = "POST /models/downloads goes on with what has arrived."
        return WorkFailure("process_died", message, hint)

    def clean_up(self, lease: DownloadLease) -> None:
        """Nothing is removed: what has arrived is of use to the next download."""
        self._on_change()


DownloadRunner = WorkRunner[DownloadLease, DownloadReport, Downloaded]
