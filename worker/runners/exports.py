"""Exports, as the runner needs to know them: their child, on the CPU, and the files they end with."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.datasets import records as dataset_records
from app.core.engine import base_models
from app.core.errors import NotFound, TunesmithError
from app.core.errors.exports import ExportDiskFull, ExportFailure
from app.core.exports import records as export_records
from app.core.exports.queue import (
    ComparedFailure,
    ExportingWorker,
    ExportLease,
    ExportQueue,
    ExportResult,
    export_queue,
)
from app.core.jobs import pushes
from app.core.settings import Settings
from app.core.specs.export import CalibratedSpec
from app.core.specs.job import QuantizationSpec
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables
from app.core.storage.artifact_cache import ArtifactCache
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from worker.exports.reports import (
    Exported,
    ExportFailed,
    Exporting,
    ExportReport,
    ExportRequest,
    export_report_adapter,
)
from worker.models.files import hub_cache
from worker.processes.child_process import ChildProcess
from worker.runners.work_handler import WorkHandler
from worker.runners.work_runner import WorkRunner

log = logging.getLogger(__name__)

EXPORTING_MODULE = "worker.exports.run"
_MERGED = "merged"
_SWEEP_SECONDS = 60.0
# An empty list of devices: the GPU is training's. The child gives way to other threads, see run.py.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""}
# Gives an export, by its id, a GPU that nothing else is on, as CUDA_VISIBLE_DEVICES takes it; None: no such.
IdleGpu = Callable[[str], AbstractContextManager[str | None]]


def _find_no_gpu(_export_id: str) -> AbstractContextManager[str | None]:
    return nullcontext()


@dataclass(frozen=True)
class _ExportInputs:
    adapter: tables.AdapterRow
    dataset: tables.DatasetRow | None


class ExportHandler(WorkHandler[ExportLease, ExportReport, Exported]):
    """Exports. A merged model stays between attempts, so that a further one need not merge again."""

    reports = export_report_adapter
    disk_full = ExportDiskFull(hint="Free some space, then retry: a complete merge is kept.")
    failure_code = "export_failed"

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        idle_gpu: IdleGpu = _find_no_gpu,
        *,
        module: str = EXPORTING_MODULE,
    ) -> None:
        self.stop_grace_seconds = settings.cancel_grace_seconds
        worker = ExportingWorker(
            lambda: base_models.find_names(settings), hub_cache.has_token, settings.lease_seconds
        )
        self._exports = ExportQueue(worker, on_end=pushes.record_end)
        self.queue = self._exports
        self._settings = settings
        self._database = database
        self._store = store
        self._idle_gpu = idle_gpu
        self._module = module
        self._root = settings.data_dir / "exports"
        self._swept_at = -math.inf

    def describe(self, lease: ExportLease) -> str:
        return f"Export {lease.export_id}"

    @contextmanager
    def start(self, lease: ExportLease) -> Iterator[ChildProcess]:
        log.info("Export %s: adapter %s as %s", lease.export_id, lease.adapter_id, lease.spec.format)
        self._sweep()
        self._folder(lease).mkdir(parents=True, exist_ok=True)
        log_path = self._settings.data_dir / "logs" / "exports.log"
        with ExitStack() as hold:
            request = self._make_request(lease, hold)
            if isinstance(lease.spec, CalibratedSpec):
                gpu = hold.enter_context(self._idle_gpu(lease.export_id))
                request = request.model_copy(update={"gpu": gpu})
            yield ChildProcess(self._module, request, log_path, environment=_ENVIRONMENT)

    def find_ending(self, report: ExportReport) -> Exported | WorkFailure | None:
        if isinstance(report, ExportFailed):
            return ComparedFailure(report.code, report.message, report.hint, report.agreement)
        return report if isinstance(report, Exported) else None

    def record(self, session: Session, lease: ExportLease, reports: Sequence[ExportReport]) -> None:
        last = reports[-1]
        assert isinstance(last, Exporting)
        export_queue.record(session, lease, phase=last.phase, progress=last.progress)

    def may_undo(self, lease: ExportLease) -> bool:
        """Whether the export was cancelled or deleted: then its child removes what it made at the Hub.

        Where another worker runs the export now, what is at the Hub is that worker's.
        """
        try:
            with self._database.snapshot() as session:
                row = session.get(tables.ExportRow, lease.export_id)
        except SQLAlchemyError:
            return False
        return row is None or ExportState(row.state).has_ended

    def artifact(self, lease: ExportLease) -> str:
        return lease.artifact

    def deliver(
        self, lease: ExportLease, result: Exported, announce: Callable[[ExportReport], None]
    ) -> Callable[[Session], None]:
        for done, file in enumerate(result.files):
            announce(Exporting(phase=ExportPhase.STORING, progress=done / len(result.files)))
            self._store.put_file(f"{lease.artifact}/{file.name}", result.folder / file.name)
        found = ExportResult(result.files, result.agreement, result.notes, result.url)
        return lambda session: self._exports.finish(session, lease, found)

    def delivered(self, lease: ExportLease) -> None:
        shutil.rmtree(self._root / lease.export_id, ignore_errors=True)

    def explain_death(self, child: ChildProcess) -> WorkFailure:
        message = f"The exporting process {child.describe_death()}"
        return WorkFailure("process_died", message, "POST /exports/{id}/retry tries again.")

    def clean_up(self, lease: ExportLease) -> None:
        shutil.rmtree(self._folder(lease), ignore_errors=True)
        self._swept_at = -math.inf

    def rest(self) -> None:
        """Remove what nobody needs, at most once a minute."""
        if time.monotonic() - self._swept_at >= _SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            self._sweep()

    def remove_leftovers(self) -> None:
        """Remove what workers left that died, and merged models that no attempt will need."""
        # Listed before the rows are read: the folder of an export that begins meanwhile is no leftover.
        parts = [part for part in self._root.glob("*/*") if part.is_dir() and part.name != _MERGED]
        folders = list(self._root.glob("*"))
        keys = {"exports/" + "/".join(path.split("/")[:2]) for path in self._store.list_files("exports")}
        with self._database.snapshot() as session:
            tokens = export_queue.find_tokens(session)
            resumable = export_queue.find_resumable(session)
            artifacts = export_queue.find_artifacts(session)
        unneeded = [part for part in parts if part.name not in tokens]
        unneeded += [folder for folder in folders if folder.name not in resumable]
        for path in unneeded:
            shutil.rmtree(path, ignore_errors=True)
        for key in keys - artifacts:
            if key.rsplit("/", 1)[-1] not in tokens:
                self._store.delete(key)

    def _sweep(self) -> None:
        try:
            self.remove_leftovers()
        except Exception:  # the store may be away; exports are claimed all the same
            log.exception("What dead exports left could not be removed")

    def _folder(self, lease: ExportLease) -> Path:
        return self._root / lease.export_id / lease.token

    def _make_request(self, lease: ExportLease, hold: ExitStack) -> ExportRequest:
        """The child's request. Raises ExportFailure where the adapter is gone."""
        with self._database.snapshot() as session:
            inputs = _find_inputs(session, lease)
        try:
            cache = ArtifactCache(self._settings.cache_folder, self._settings.cache_bytes)
            folder = self._store.fetch(inputs.adapter.artifact, cache, hold)
            dataset = self._store.fetch(inputs.dataset.artifact, cache, hold) if inputs.dataset else None
        except FileNotFoundError as error:
            raise ExportFailure(f"The artifact store has lost {error}.") from error
        return ExportRequest(
            spec=lease.spec,
            adapter_id=lease.adapter_id,
            adapter_name=inputs.adapter.name,
            adapter_folder=folder,
            base_model=inputs.adapter.base_model,
            quantization=QuantizationSpec.model_validate(inputs.adapter.quantization),
            models_folder=self._settings.models_folder,
            dataset=dataset,
            llm_compressor=self._settings.llm_compressor_python,
            folder=self._folder(lease),
            merged=self._root / lease.export_id / _MERGED,
        )


ExportRunner = WorkRunner[ExportLease, ExportReport, Exported]


def _find_inputs(session: Session, lease: ExportLease) -> _ExportInputs:
    """The adapter, and the dataset that it was trained on where it still exists. Raises ExportFailure."""
    try:
        adapter = adapter_records.get(session, export_records.get(session, lease.export_id).adapter_id)
    except NotFound as error:
        raise ExportFailure("The adapter was deleted before the export began.") from error
    job = session.get(tables.JobRow, adapter.job_id) if adapter.job_id else None
    if job is None:
        return _ExportInputs(adapter, None)
    try:
        return _ExportInputs(adapter, dataset_records.get_ready(session, job.dataset_id))
    except TunesmithError:
        return _ExportInputs(adapter, None)
