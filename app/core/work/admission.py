"""Whether a caller may put work into a queue, and with which priority; and changes of it while it waits.

Nothing here commits.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.errors.access import KeyQueueFull, ScopeMissing
from app.core.errors.work import NotWaiting
from app.core.keys.records import Caller
from app.core.specs.states import QUEUED
from app.core.storage import tables
from app.core.storage.tables import QueuedRow

# Work in these states waits, or will wait once it goes on.
_WAITING = (QUEUED, "paused")


def admit(session: Session, table: type[QueuedRow], caller: Caller, priority: int, *, noun: str) -> None:
    """Raise ScopeMissing for a priority that is not the caller's to give, KeyQueueFull at the key's limit.

    The limit holds for each kind of work by itself. `noun` names one in messages.
    """
    _check_priority(caller, priority, noun=noun)
    if caller.key_id is not None and caller.limits.queued_jobs is not None:
        _check_limit(session, table, caller.key_id, noun=noun)


def readmit(session: Session, row: QueuedRow, *, noun: str) -> None:
    """Raise KeyQueueFull where the key that submitted this work has no place left for it to wait again."""
    if row.key_id:
        _check_limit(session, type(row), row.key_id, noun=noun)


def change_priority(row: QueuedRow, priority: int, caller: Caller, *, noun: str) -> None:
    """Give waiting work another place in its queue. The row must be locked.

    Raises ScopeMissing, and NotWaiting for work that a worker has taken or that has ended.
    """
    _check_priority(caller, priority, noun=noun)
    if row.state not in _WAITING:
        raise NotWaiting(
            f"The {noun} {row.id} is {row.state}: a priority counts while it waits for a worker.",
            hint=f"Only a waiting {noun}'s priority can be changed.",
        )
    row.priority = priority
    row.spec = {**row.spec, "priority": priority}


def _check_priority(caller: Caller, priority: int, *, noun: str) -> None:
    if priority > 0 and not caller.is_admin:
        raise ScopeMissing(
            f"priority: {priority} puts the {noun} before those of others, which needs the scope admin.",
            hint=f"Without it a priority is 0, or below: the {noun} then waits for others.",
        )


def _check_limit(session: Session, table: type[QueuedRow], key_id: str, *, noun: str) -> None:
    # Two submissions of one key at once come one after the other; on SQLite every writing transaction does.
    key = session.get(tables.ApiKeyRow, key_id, populate_existing=True, with_for_update=True)
    limit = key.queued_jobs if key is not None else None
    if key is None or limit is None:
        return
    own = select(func.count()).where(table.key_id == key_id, table.state == QUEUED)
    waiting = session.scalar(own) or 0
    if waiting >= limit:
        raise KeyQueueFull(
            f"The key {key.name!r} has {waiting} waiting {noun}{'' if waiting == 1 else 's'}, of {limit}.",
            hint=f"Its limit queued_jobs is {limit}: wait until one has begun, or cancel one.",
        )
