"""Evaluations, as the runner needs to know them: their child, which asks the engine, and their answers."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.engine.preflight import PreflightRequest
from app.core.errors import TunesmithError
from app.core.errors.evaluations import EvaluationDiskFull, EvaluationFailure
from app.core.evaluations import records
from app.core.evaluations.queue import EvaluationLease, RecordedAnswer, evaluation_queue
from app.core.keys.usage import Amounts
from app.core.settings import Settings
from app.core.specs.states import EvaluationPhase
from app.core.storage.artifact_cache import ArtifactCache
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from worker.evaluations.reports import (
    Evaluated,
    Evaluating,
    EvaluationBroken,
    EvaluationReport,
    EvaluationRun,
    RowsComplete,
    RowsFound,
    evaluation_report_adapter,
)
from worker.planning import gpu_sharing
from worker.processes.child_process import ChildProcess
from worker.runners.work_handler import WorkHandler
from worker.runners.work_runner import WorkRunner

log = logging.getLogger(__name__)

EVALUATING_MODULE = "worker.evaluations.run"


class EvaluationHandler(WorkHandler[EvaluationLease, EvaluationReport, Evaluated]):
    """Evaluations. What is reported is stored at once, so that a further attempt goes on from there."""

    queue = evaluation_queue
    reports = evaluation_report_adapter
    disk_full = EvaluationDiskFull(hint="Free some space, then retry: answers that are there stay.")
    failure_code = "evaluation_failed"

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        *,
        module: str = EVALUATING_MODULE,
    ) -> None:
        self.stop_grace_seconds = settings.cancel_grace_seconds
        self._settings = settings
        self._database = database
        self._store = store
        self._module = module

    def describe(self, lease: EvaluationLease) -> str:
        return f"Evaluation {lease.evaluation_id}"

    @contextmanager
    def start(self, lease: EvaluationLease) -> Iterator[ChildProcess]:
        labels = ", ".join(model.label for model in lease.spec.models)
        log.info("Evaluation %s: %s", lease.evaluation_id, labels)
        log_path = self._settings.data_dir / "logs" / "evaluations.log"
        yield ChildProcess(self._module, self._make_request(lease), log_path)

    def find_ending(self, report: EvaluationReport) -> Evaluated | WorkFailure | None:
        if isinstance(report, EvaluationBroken):
            return WorkFailure(report.code, report.message, report.hint)
        return report if isinstance(report, Evaluated) else None

    def record(self, session: Session, lease: EvaluationLease, reports: Sequence[EvaluationReport]) -> None:
        answers: dict[tuple[int, int], RecordedAnswer] = {}
        used: dict[str, Amounts] = {}
        phase: EvaluationPhase | None = None
        progress: Evaluating | None = None
        for report in reports:
            if isinstance(report, RowsFound):
                evaluation_queue.record_rows(session, lease, report.first, report.items)
            elif isinstance(report, RowsComplete):
                evaluation_queue.finish_rows(session, lease, rows=report.rows, left_out=report.left_out)
            elif isinstance(report, Evaluating):
                answers |= {(one.number, one.model): one for one in report.answers}
                for one in report.used:
                    amounts = Amounts(one.requests, one.prompt_tokens, one.completion_tokens)
                    used.setdefault(one.model, Amounts()).add(amounts)
                phase, progress = report.phase or phase, report
        if progress is not None:
            evaluation_queue.record(
                session,
                lease,
                answers=list(answers.values()),
                used=used,
                phase=phase,
                waiting_for=progress.waiting_for,
            )

    def deliver(
        self, lease: EvaluationLease, result: Evaluated, announce: Callable[[EvaluationReport], None]
    ) -> Callable[[Session], None]:
        return lambda session: evaluation_queue.finish(session, lease, result.results)

    def explain_death(self, child: ChildProcess) -> WorkFailure:
        message = f"The evaluating process {child.describe_death()}"
        hint = "POST /evaluations/{id}/retry goes on with what is not graded yet."
        return WorkFailure("process_died", message, hint)

    def clean_up(self, lease: EvaluationLease) -> None:
        """Nothing is removed: an evaluation has no files of its own."""

    def _make_request(self, lease: EvaluationLease) -> EvaluationRun:
        """The child's request. Raises EvaluationFailure where the rows of the evaluation are gone."""
        with self._database.snapshot() as session:
            has_rows = records.get(session, lease.evaluation_id).rows is not None
            source = None if has_rows else _find_source(session, lease)
        try:
            cache = ArtifactCache(self._settings.cache_folder, self._settings.cache_bytes)
            rows = self._store.fetch(source.artifact, cache) if source else None
        except FileNotFoundError as error:
            raise EvaluationFailure(f"The artifact store has lost {error}.") from error
        return EvaluationRun.of(
            self._settings,
            evaluation_id=lease.evaluation_id,
            spec=lease.spec,
            rows=rows,
            held_out=source.held_out if source else None,
        )


EvaluationRunner = WorkRunner[EvaluationLease, EvaluationReport, Evaluated]


@dataclass(frozen=True)
class _Source:
    """The file of a dataset, and the job whose own split chooses its rows, if any."""

    artifact: str
    held_out: PreflightRequest | None


def _find_source(session: Session, lease: EvaluationLease) -> _Source:
    """Where the rows of an evaluation come from. Raises EvaluationFailure where that is gone."""
    spec = lease.spec
    try:
        if spec.held_out_of is None:
            assert spec.dataset is not None
            return _Source(dataset_records.get_ready(session, spec.dataset).artifact, None)
        job = gpu_sharing.find_request(session, spec.held_out_of)
    except TunesmithError as error:
        raise EvaluationFailure(f"The rows of the evaluation are gone: {error.message}") from error
    if job.validation_dataset:
        return _Source(job.validation_dataset.artifact, None)
    return _Source(job.dataset.artifact, job)
