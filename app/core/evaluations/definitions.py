"""What several evaluations have in common: evals of /v1/evals, of which each evaluation is a run.

Nothing here commits.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.errors.evaluations import EvalNotFound
from app.core.evaluations import records
from app.core.specs.states import EvaluationState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.storage.paging import Order, by_age

Definition = tables.EvaluationDefinitionRow


def create(
    session: Session, content: dict[str, Any], *, name: str | None, now: datetime | None = None
) -> Definition:
    """Store a definition. Returns its row."""
    definition_id = new_id("eval")
    row = Definition(
        id=definition_id, name=name or definition_id, content=content, created_at=now or clock.now(session)
    )
    session.add(row)
    session.flush()
    return row


def get(session: Session, definition_id: str) -> Definition:
    """Returns a definition by its id. Raises EvalNotFound."""
    row = session.get(Definition, definition_id)
    if row is None:
        raise EvalNotFound(f"There is no eval {definition_id!r}.", hint="GET /v1/evals lists them.")
    return row


def find_page(
    session: Session, *, order: Order, after: str | None, limit: int
) -> tuple[Sequence[Definition], bool]:
    """Returns a page of definitions by the time they were made, and whether there are more.

    Raises InvalidRequest where `after` names none.
    """
    found, cursor = by_age(session, select(Definition), Definition, order=order, after=after, limit=limit)
    return found, cursor is not None


def find_runs(
    session: Session,
    definition_id: str,
    *,
    state: EvaluationState | None,
    order: Order,
    after: str | None,
    limit: int,
) -> tuple[Sequence[tables.EvaluationRow], bool]:
    """Returns a page of a definition's evaluations, and whether there are more. Raises as `find_page`."""
    row = tables.EvaluationRow
    query = select(row).where(row.definition_id == definition_id)
    if state is not None:
        query = query.where(row.state == state)
    found, cursor = by_age(session, query, row, order=order, after=after, limit=limit)
    return found, cursor is not None


def get_run(session: Session, definition_id: str, run_id: str) -> tables.EvaluationRow:
    """Returns an evaluation of a definition. Raises EvalNotFound and EvaluationNotFound."""
    get(session, definition_id)
    run = session.get(tables.EvaluationRow, run_id)
    if run is None or run.definition_id != definition_id:
        raise EvalNotFound(
            f"The eval {definition_id!r} has no run {run_id!r}.", hint="GET /v1/evals/{id}/runs lists them."
        )
    return run


def delete(session: Session, definition_id: str) -> None:
    """Remove a definition and its evaluations; those that run are cancelled. Raises EvalNotFound."""
    definition = get(session, definition_id)
    row = tables.EvaluationRow
    for run in session.scalars(select(row).where(row.definition_id == definition_id)).all():
        delete_run(session, run)
    session.delete(definition)
    session.flush()


def delete_run(session: Session, run: tables.EvaluationRow) -> None:
    """Remove an evaluation; one that runs is cancelled first."""
    if not EvaluationState(run.state).has_ended:
        records.cancel(session, run.id)
    records.delete(session, run.id)
