"""The durable queue of evaluations, as a worker uses it: what it adds to `WorkQueue`. Commits nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, and_, delete as sql_delete, func, insert, not_, or_, update
from sqlalchemy.orm import Session

from app.core.evaluations.answers import Answer, StoredGrade
from app.core.evaluations.items import EvaluationItem
from app.core.evaluations.spec import EvaluationSpec
from app.core.keys import usage
from app.core.keys.usage import Amounts, UsageKey
from app.core.specs.states import EvaluationPhase, EvaluationState
from app.core.storage import clock, tables
from app.core.webhooks import deliveries
from app.core.webhooks.subscriptions import EventType
from app.core.work.failures import WorkFailure
from app.core.work.leases import RELEASED, Leases, WorkLease
from app.core.work.queue import WorkQueue


@dataclass(frozen=True)
class EvaluationLease(WorkLease):
    """A worker's right to run one evaluation. `key_id` is the key that asked for it, or empty."""

    spec: EvaluationSpec
    key_id: str

    @property
    def evaluation_id(self) -> str:
        """The evaluation's id."""
        return self.key


@dataclass(frozen=True)
class RecordedAnswer:
    """One model's answer to one row; `grades` are None until it is graded."""

    number: int
    model: int
    answer: Answer
    grades: Sequence[StoredGrade] | None = None


class EvaluationQueue(WorkQueue[tables.EvaluationRow, EvaluationLease]):
    """The queue of evaluations. One that was cancelled or deleted has no lease."""

    leases = Leases(tables.EvaluationRow, tables.EvaluationRow.id, "evaluation")
    released_columns: ClassVar[dict[str, Any]] = {
        "state": EvaluationState.QUEUED,
        "phase": None,
        "waiting_for": None,
    }

    def is_free(self, session: Session, now: datetime) -> ColumnElement[bool]:
        """A condition: the evaluation waits and its key has tokens left, or its worker was lost."""
        row = tables.EvaluationRow
        is_lost = and_(row.state == EvaluationState.RUNNING, row.lease_expires_at < now)
        has_tokens = not_(usage.is_spent(row.key_id, now.date()))
        return or_(and_(row.state == EvaluationState.QUEUED, has_tokens), is_lost)

    def claimed_columns(self, now: datetime) -> dict[str, Any]:
        """Columns that a claim sets, besides those of the lease."""
        begun = {"state": EvaluationState.RUNNING, "phase": EvaluationPhase.PREPARING, "waiting_for": None}
        return begun | {"started_at": func.coalesce(tables.EvaluationRow.started_at, now)}

    def make_lease(self, session: Session, row: tables.EvaluationRow, token: str) -> EvaluationLease:
        """The lease on an evaluation that was just claimed."""
        return EvaluationLease(row.id, token, EvaluationSpec.model_validate(row.spec), row.key_id)

    def record_rows(
        self, session: Session, lease: EvaluationLease, first: int, items: Sequence[EvaluationItem]
    ) -> None:
        """Store rows from the number `first` on, in place of those of an attempt that broke off.

        Raises LeaseLost.
        """
        self.leases.hold(session, lease)
        if first == 0:
            of_this = tables.EvaluationItemRow.evaluation_id == lease.key
            session.execute(sql_delete(tables.EvaluationItemRow).where(of_this))
        add_items(session, lease.key, first, items)

    def finish_rows(self, session: Session, lease: EvaluationLease, *, rows: int, left_out: int) -> None:
        """Record that all rows are stored, and how many of the dataset were left out. Raises LeaseLost."""
        total = rows * len(lease.spec.models)
        self.leases.update(session, lease, rows=rows, left_out=left_out, total=total)

    def record(
        self,
        session: Session,
        lease: EvaluationLease,
        *,
        answers: Sequence[RecordedAnswer] = (),
        used: Mapping[str, Amounts] | None = None,
        phase: EvaluationPhase | None = None,
        waiting_for: str | None = None,
    ) -> None:
        """Store answers and grades, and what the evaluation is doing now. Raises LeaseLost.

        `used`, by the names of models, is added to the usage of the key that asked for the evaluation.
        """
        changes: dict[str, Any] = {"waiting_for": waiting_for}
        if phase is not None:
            changes["phase"] = phase
        graded = [one for one in answers if one.grades is not None]
        if graded:
            changes["done"] = tables.EvaluationRow.done + len(graded)
            errors = sum(one.answer.error is not None for one in graded)
            changes["failed"] = tables.EvaluationRow.failed + errors
        self.leases.update(session, lease, **changes)
        for one in answers:
            _store_answer(session, lease.key, one)
        today = clock.now(session).date()
        usage.add(session, {UsageKey(lease.key_id, today, name): one for name, one in (used or {}).items()})

    def finish(
        self,
        session: Session,
        lease: EvaluationLease,
        results: Mapping[str, Any],
        *,
        now: datetime | None = None,
    ) -> None:
        """End the evaluation as succeeded. Raises LeaseLost."""
        self._end(session, lease, EvaluationState.SUCCEEDED, now, results=dict(results), error=None)

    def fail(
        self,
        session: Session,
        lease: EvaluationLease,
        failure: WorkFailure,
        *,
        now: datetime | None = None,
    ) -> None:
        """End the evaluation as failed, with the reason; its answers stay. Raises LeaseLost."""
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        self._end(session, lease, EvaluationState.FAILED, now, error=error)

    def explain_loss(self, attempts: int) -> WorkFailure:
        """The failure of an evaluation whose workers were lost so many times."""
        return WorkFailure(
            "worker_lost",
            f"The worker was lost during this evaluation, {attempts} times.",
            "Look at the worker's own log; POST /evaluations/{id}/retry goes on with what is not graded yet.",
        )

    def _end(
        self,
        session: Session,
        lease: EvaluationLease,
        state: EvaluationState,
        now: datetime | None,
        **columns: object,
    ) -> None:
        now = now or clock.now(session)
        ended: dict[str, object] = {"state": state, "phase": None, "waiting_for": None, "finished_at": now}
        self.leases.update(session, lease, **RELEASED, **ended, **columns)
        deliveries.announce_evaluation(session, lease.key, EventType.of_evaluation(state), now=now)


def add_items(session: Session, evaluation_id: str, first: int, items: Sequence[EvaluationItem]) -> None:
    """Store rows of an evaluation from the number `first` on."""
    if items:
        session.execute(
            insert(tables.EvaluationItemRow),
            [
                {
                    "evaluation_id": evaluation_id,
                    "number": first + index,
                    "line": one.line,
                    "item": one.item,
                    "prompt": one.prompt.model_dump(mode="json", exclude_defaults=True),
                }
                for index, one in enumerate(items)
            ],
        )


def _store_answer(session: Session, evaluation_id: str, one: RecordedAnswer) -> None:
    row = tables.EvaluationAnswerRow
    grades = None if one.grades is None else [grade.model_dump(mode="json") for grade in one.grades]
    values: dict[str, Any] = {"answer": one.answer.model_dump(mode="json"), "grades": grades}
    same = and_(row.evaluation_id == evaluation_id, row.number == one.number, row.model == one.model)
    changed = session.scalar(update(row).where(same).values(**values).returning(row.number))
    if changed is None:
        key = {"evaluation_id": evaluation_id, "number": one.number, "model": one.model}
        session.execute(insert(row), [key | values])


evaluation_queue = EvaluationQueue()
