"""What people do with evaluations: submit, find, cancel, retry, delete. Nothing here commits.

What workers do with evaluations is in app/core/evaluations/queue.py.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete as sql_delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.core.errors import QueueFull
from app.core.errors.evaluations import (
    EvaluationAlreadyEnded,
    EvaluationNotEnded,
    EvaluationNotFound,
    EvaluationNotRetryable,
)
from app.core.evaluations.items import EvaluationItem
from app.core.evaluations.queue import add_items
from app.core.evaluations.spec import EvaluationSpec
from app.core.keys import usage
from app.core.keys.records import OWNER, Caller
from app.core.specs.states import UNFINISHED, EvaluationState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first
from app.core.webhooks import deliveries
from app.core.webhooks.subscriptions import EventType
from app.core.work import admission


def submit(
    session: Session,
    spec: EvaluationSpec,
    *,
    name: str | None = None,
    inline: Sequence[EvaluationItem] | None = None,
    definition_id: str | None = None,
    origin: dict[str, Any] | None = None,
    max_waiting: int,
    caller: Caller = OWNER,
    now: datetime | None = None,
) -> tables.EvaluationRow:
    """Put an evaluation of this caller in the queue: of `inline` rows, or of those that the spec names.

    Raises QueueFull, KeyQueueFull and ScopeMissing.
    """
    admission.admit(session, tables.EvaluationRow, caller, spec.priority, noun="evaluation")
    waiting = session.scalar(
        select(func.count())
        .select_from(tables.EvaluationRow)
        .where(tables.EvaluationRow.state.in_(UNFINISHED))
    )
    if (waiting or 0) >= max_waiting:
        raise QueueFull(f"{waiting} evaluations are waiting already.", hint="Try again later.")
    evaluation_id = new_id("ev")
    evaluation = tables.EvaluationRow(
        id=evaluation_id,
        name=name or evaluation_id,
        definition_id=definition_id,
        spec=spec.model_dump(mode="json", by_alias=True),
        origin=origin,
        dataset_id=spec.dataset,
        job_id=spec.held_out_of,
        state=EvaluationState.QUEUED,
        key_id=caller.key_id or "",
        priority=spec.priority,
        rows=None if inline is None else len(inline),
        total=None if inline is None else len(inline) * len(spec.models),
        created_at=now or clock.now(session),
    )
    session.add(evaluation)
    session.flush()
    add_items(session, evaluation_id, 0, inline or [])
    return evaluation


def get(session: Session, evaluation_id: str, *, lock: bool = False) -> tables.EvaluationRow:
    """Returns an evaluation by its id, locked until the transaction ends where `lock` says so.

    Raises EvaluationNotFound.
    """
    evaluation = session.get(
        tables.EvaluationRow, evaluation_id, populate_existing=True, with_for_update=lock or None
    )
    if evaluation is None:
        raise EvaluationNotFound(
            f"There is no evaluation {evaluation_id!r}.", hint="GET /evaluations lists them."
        )
    return evaluation


def find_page(
    session: Session,
    *,
    state: EvaluationState | None = None,
    search: str | None = None,
    definition_id: str | None = None,
    dataset_id: str | None = None,
    job_id: str | None = None,
    after: str | None,
    limit: int,
) -> tuple[list[tables.EvaluationRow], str | None]:
    """Returns a page of evaluations, newest first, and the cursor of the next page.

    `search` selects those whose name or id contains it, in whatever case.
    """
    row = tables.EvaluationRow
    query = select(row)
    equals = {row.state: state, row.definition_id: definition_id}
    equals |= {row.dataset_id: dataset_id, row.job_id: job_id}
    for column, value in equals.items():
        if value is not None:
            query = query.where(column == value)
    if search:
        query = query.where(or_(*(one.icontains(search, autoescape=True) for one in (row.name, row.id))))
    return newest_first(session, query, row, after=after, limit=limit)


def count_by_state(session: Session) -> dict[EvaluationState, int]:
    """Returns the number of evaluations in each state, 0 included."""
    row = tables.EvaluationRow
    counted = session.execute(select(row.state, func.count()).group_by(row.state)).all()
    return dict.fromkeys(EvaluationState, 0) | {EvaluationState(state): count for state, count in counted}


def find_held(
    session: Session, rows: Sequence[tables.EvaluationRow], *, now: datetime | None = None
) -> set[str]:
    """Returns the ids of those that wait until the next day: their keys have spent their tokens of today."""
    row = tables.EvaluationRow
    waiting = [one.id for one in rows if one.state == EvaluationState.QUEUED and one.key_id]
    if not waiting:
        return set()
    today = (now or clock.now(session)).date()
    return set(session.scalars(select(row.id).where(row.id.in_(waiting), usage.is_spent(row.key_id, today))))


def cancel(session: Session, evaluation_id: str, *, now: datetime | None = None) -> tables.EvaluationRow:
    """End an evaluation; its answers stay. Its worker finds its lease gone. Raises EvaluationAlreadyEnded."""
    evaluation = get(session, evaluation_id, lock=True)
    if EvaluationState(evaluation.state).has_ended:
        raise EvaluationAlreadyEnded(f"Evaluation {evaluation_id} is {evaluation.state} already.")
    now = now or clock.now(session)
    evaluation.state = EvaluationState.CANCELLED
    evaluation.phase = evaluation.waiting_for = None
    evaluation.lease_token = evaluation.lease_expires_at = None
    evaluation.finished_at = now
    session.flush()
    deliveries.announce_evaluation(
        session, evaluation_id, EventType.of_evaluation(EvaluationState.CANCELLED), now=now
    )
    return evaluation


def change_priority(
    session: Session, evaluation_id: str, priority: int, *, caller: Caller = OWNER
) -> tables.EvaluationRow:
    """Give a waiting evaluation another priority. Raises EvaluationNotFound, NotWaiting and ScopeMissing."""
    evaluation = get(session, evaluation_id, lock=True)
    admission.change_priority(evaluation, priority, caller, noun="evaluation")
    session.flush()
    return evaluation


def retry(session: Session, evaluation_id: str) -> tables.EvaluationRow:
    """Queue an evaluation that has ended again; only what is missing or has an error is asked again.

    Raises EvaluationNotRetryable where it has not ended, or nothing is missing, and KeyQueueFull.
    """
    evaluation = get(session, evaluation_id, lock=True)
    if not EvaluationState(evaluation.state).has_ended:
        raise EvaluationNotRetryable(
            f"Evaluation {evaluation_id} is {evaluation.state}; only one that has ended can be retried.",
            hint="POST /evaluations makes another one.",
        )
    has_errors = _forget_errors(session, evaluation)
    if evaluation.state == EvaluationState.SUCCEEDED and not has_errors:
        raise EvaluationNotRetryable(
            f"Evaluation {evaluation_id} has succeeded without an error: there is nothing to ask again.",
            hint="POST /evaluations makes another one.",
        )
    admission.readmit(session, evaluation, noun="evaluation")
    evaluation.state = EvaluationState.QUEUED
    evaluation.error = evaluation.results = evaluation.finished_at = evaluation.started_at = None
    evaluation.attempts = 0
    session.flush()
    return evaluation


def _forget_errors(session: Session, evaluation: tables.EvaluationRow) -> bool:
    """Remove answers that are errors, and grades that failed. Returns whether there were any."""
    row = tables.EvaluationAnswerRow
    of_this = row.evaluation_id == evaluation.id
    query = select(row.number, row.model, row.answer, row.grades).where(of_this)
    missing: list[tuple[int, int]] = []
    ungraded: list[tuple[int, int]] = []
    done = 0
    for number, model, answer, grades in session.execute(query):
        if answer.get("error"):
            missing.append((number, model))
        elif grades is not None and any(grade["score"] is None for grade in grades):
            ungraded.append((number, model))
        else:
            done += grades is not None
    for number, model in missing:
        session.execute(sql_delete(row).where(of_this, row.number == number, row.model == model))
    for number, model in ungraded:
        session.execute(
            update(row).where(of_this, row.number == number, row.model == model).values(grades=None)
        )
    evaluation.done, evaluation.failed = done, 0
    return bool(missing or ungraded)


def delete(session: Session, evaluation_id: str) -> None:
    """Remove an evaluation that has ended, its rows and answers. Raises EvaluationNotEnded."""
    evaluation = get(session, evaluation_id, lock=True)
    if not EvaluationState(evaluation.state).has_ended:
        raise EvaluationNotEnded(
            f"Evaluation {evaluation_id} is {evaluation.state}.",
            hint=f"Cancel it first: POST /evaluations/{evaluation_id}/cancel.",
        )
    # The database deletes its rows and answers with it.
    session.delete(evaluation)
    session.flush()
