"""Runs one claimed export: starts its child, stores the files, says truthfully how it ended.

The child never touches the database; this process owns the lease and does all the writing. Knows no torch.
"""

import contextlib
import errno
import logging
import math
import shutil
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.datasets import records as dataset_records
from app.core.errors import NotFound, TunesmithError
from app.core.errors.exports import ExportDiskFull, ExportFailure
from app.core.errors.work import LeaseLost
from app.core.exports import records as export_records
from app.core.exports.queue import ComparedFailure, ExportLease, ExportResult, export_queue
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from worker.exports.reports import Exported, ExportFailed, Exporting, ExportRequest, export_report_adapter
from worker.processes.child_process import ChildProcess
from worker.processes.child_watch import last_words, watch
from worker.processes.lease_heartbeat import LeaseKeeper

log = logging.getLogger(__name__)

EXPORTING_MODULE = "worker.exports.run"
_MERGED = "merged"
_SWEEP_SECONDS = 60.0
# An empty list of devices: the GPU is training's. Threads beside it give way (see run.py).
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class _Inputs:
    adapter: tables.AdapterRow
    dataset: tables.DatasetRow | None


class ExportRunner:
    """Makes exports, one at a time, until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        *,
        stop: threading.Event,
        exporting_module: str = EXPORTING_MODULE,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._stop = stop
        self._module = exporting_module
        self._root = settings.data_dir / "exports"
        self._swept_at = -math.inf

    def claim(self) -> ExportLease | None:
        """The next export to run, or None; then what nobody needs is removed, now and then."""
        settings = self._settings
        with self._database.transaction() as session:
            lease = export_queue.claim(
                session, lease_seconds=settings.lease_seconds, max_attempts=settings.max_lost_attempts
            )
        if lease is None and time.monotonic() - self._swept_at >= _SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            self._sweep()
        return lease

    def run(self, lease: ExportLease) -> None:
        """Run one export to its end and record how it ended. Only a lost lease leaves no record."""
        log.info("%s: adapter %s as %s", _name(lease), lease.adapter_id, lease.spec.format)
        seconds = self._settings.lease_seconds
        renew = partial(export_queue.heartbeat, lease=lease, lease_seconds=seconds)
        with LeaseKeeper(self._database, _name(lease), seconds, renew) as keeper:
            try:
                self._sweep()
                self._folder(lease).mkdir(parents=True)
                self._export(lease, self._make_request(lease), keeper)
            except LeaseLost:
                log.warning("%s: cancelled, deleted, or another worker's now; files dropped", _name(lease))
            except Exception as error:  # the boundary: whatever it was, it must not stay `running`
                log.exception("%s: the worker failed", _name(lease))
                with contextlib.suppress(LeaseLost):
                    self._fail(lease, keeper, _failure(error))
            finally:
                shutil.rmtree(self._folder(lease), ignore_errors=True)
                self._swept_at = -math.inf

    def remove_leftovers(self) -> None:
        """Remove what workers left that died, and merged models that no attempt will need."""
        # Looked at before the rows: what an export makes that begins meanwhile is not taken for a leftover.
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
        """Give back the room of what died, was cancelled or deleted."""
        try:
            self.remove_leftovers()
        except Exception:  # the store may be away; exports are claimed all the same
            log.exception("What dead exports left could not be removed")

    def _folder(self, lease: ExportLease) -> Path:
        return self._root / lease.export_id / lease.token

    def _make_request(self, lease: ExportLease) -> ExportRequest:
        """What the child is told. Raises ExportFailure where the adapter is gone."""
        with self._database.snapshot() as session:
            inputs = _find_inputs(session, lease)
        try:
            cache = self._settings.data_dir / "cache"
            folder = self._store.fetch(inputs.adapter.artifact, cache)
            dataset = self._store.fetch(inputs.dataset.artifact, cache) if inputs.dataset else None
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
            folder=self._folder(lease),
            merged=self._root / lease.export_id / _MERGED,
        )

    def _export(self, lease: ExportLease, request: ExportRequest, keeper: LeaseKeeper) -> None:
        log_path = self._settings.data_dir / "logs" / "exports.log"
        child = ChildProcess(self._module, request, log_path, environment=_ENVIRONMENT)
        ended = watch(
            child,
            stop=self._stop,
            grace_seconds=self._settings.cancel_grace_seconds,
            take=lambda line: self._take(lease, line, keeper, child),
            look=lambda: self._check_or_stop(lease, keeper, child),
        )
        if isinstance(ended, Exported):
            self._deliver(lease, ended, keeper)
        elif isinstance(ended, ExportFailed):
            self._fail(lease, keeper, ComparedFailure(ended.code, ended.message, ended.hint, ended.agreement))
        elif self._stop.is_set():
            keeper.write(lambda session: export_queue.release(session, lease))
        else:
            self._lose(lease, child, keeper)

    def _take(
        self, lease: ExportLease, line: bytes, keeper: LeaseKeeper, child: ChildProcess
    ) -> Exported | ExportFailed | None:
        """Write down how far the child is, or answer that it has ended."""
        report = export_report_adapter.validate_json(line)
        if not isinstance(report, Exporting):
            return report
        self._check_or_stop(lease, keeper, child, report)
        return None

    def _check_or_stop(
        self,
        lease: ExportLease,
        keeper: LeaseKeeper,
        child: ChildProcess,
        report: Exporting | None = None,
    ) -> None:
        """Let the child of an export that was cancelled take back what it began at the Hub. Raises
        LeaseLost.
        """
        try:
            self._check(lease, keeper, report)
        except LeaseLost:
            # Where another worker is at it now, what there is at the Hub is no longer this one's.
            if not self._is_run_elsewhere(lease):
                child.ask_to_stop()
                child.wait(self._settings.cancel_grace_seconds)
            raise

    def _is_run_elsewhere(self, lease: ExportLease) -> bool:
        try:
            with self._database.snapshot() as session:
                row = session.get(tables.ExportRow, lease.export_id)
        except DBAPIError:
            return True
        return row is not None and not ExportState(row.state).has_ended

    def _check(self, lease: ExportLease, keeper: LeaseKeeper, report: Exporting | None = None) -> None:
        """Write down how far the child is, where it said so. Raises LeaseLost."""
        if keeper.is_lost:
            raise LeaseLost
        try:
            if report:
                with self._database.transaction() as session:
                    export_queue.record(session, lease, phase=report.phase, progress=report.progress)
            else:
                with self._database.snapshot() as session:
                    export_queue.check(session, lease)
        except DBAPIError as error:
            log.warning("%s: the database does not answer: %s", _name(lease), error.orig)

    def _deliver(self, lease: ExportLease, exported: Exported, keeper: LeaseKeeper) -> None:
        """Put the files into the store, then name them in a transaction."""
        result = ExportResult(
            files=exported.files,
            agreement=exported.agreement,
            notes=exported.notes,
            url=exported.url,
        )
        try:
            for done, file in enumerate(exported.files):
                storing = Exporting(phase=ExportPhase.STORING, progress=done / len(exported.files))
                self._check(lease, keeper, storing)
                self._store.put_file(f"{lease.artifact}/{file.name}", exported.folder / file.name)
            keeper.write(lambda session: export_queue.finish(session, lease, result))
        except BaseException:
            self._store.delete(lease.artifact)
            raise
        shutil.rmtree(self._root / lease.export_id, ignore_errors=True)
        log.info("%s: ready", _name(lease))

    def _lose(self, lease: ExportLease, child: ChildProcess, keeper: LeaseKeeper) -> None:
        """The child died without a word."""
        message = f"The exporting process {last_words(child)}"
        failure = WorkFailure("process_died", message, "POST /exports/{id}/retry tries again.")
        log.warning("%s: %s", _name(lease), message)
        most = self._settings.max_lost_attempts
        keeper.write(lambda session: export_queue.give_up_attempt(session, lease, failure, max_attempts=most))

    def _fail(
        self,
        lease: ExportLease,
        keeper: LeaseKeeper,
        failure: WorkFailure,
    ) -> None:
        log.warning("%s: failed, %s: %s", _name(lease), failure.code, failure.message)
        # First of all: the database may be on the disk that this export has filled.
        shutil.rmtree(self._folder(lease), ignore_errors=True)
        keeper.write(lambda session: export_queue.fail(session, lease, failure))


def _find_inputs(session: Session, lease: ExportLease) -> _Inputs:
    """The adapter, and the rows that it was trained on where they are still here. Raises ExportFailure."""
    try:
        adapter = adapter_records.get(session, export_records.get(session, lease.export_id).adapter_id)
    except NotFound as error:
        raise ExportFailure("The adapter was deleted before the export began.") from error
    job = session.get(tables.JobRow, adapter.job_id) if adapter.job_id else None
    if job is None:
        return _Inputs(adapter, None)
    try:
        return _Inputs(adapter, dataset_records.get_ready(session, job.dataset_id))
    except TunesmithError:
        return _Inputs(adapter, None)


def _failure(error: Exception) -> WorkFailure:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = ExportDiskFull(hint="Free some space, then retry: a complete merge is kept.")
        return WorkFailure(full.code, full.message, full.hint)
    if isinstance(error, TunesmithError):
        return WorkFailure(error.code, error.message, error.hint)
    return WorkFailure("export_failed", f"The worker failed: {error}", "See the worker's log.")


def _name(lease: ExportLease) -> str:
    return f"Export {lease.export_id}"
