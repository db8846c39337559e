"""In which order waiting work is taken: by priority, then by turns of the keys that submitted it.

Of one priority, the key whose last work was taken longest ago comes next, with its oldest: a key with a
hundred jobs waits for its second one until each other key has had a first. (Round robin by user, as fair
queueing has it; how long work runs does not count.) Work without a stored key takes one turn together. Jobs,
evaluations and exports are queues of their own, each with its own turns.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, groupby
from typing import Any

from sqlalchemy import ColumnElement, func, literal, select
from sqlalchemy.orm import Session, aliased

from app.core.specs.states import QUEUED
from app.core.storage.tables import QueuedRow

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class WaitingWork:
    """Work that waits. `key_id` is empty without a stored key."""

    id: str
    key_id: str
    priority: int
    created_at: datetime


def next_first(table: type[QueuedRow]) -> tuple[ColumnElement[Any], ...]:
    """Returns columns to order waiting rows of a table by: the first one is the next to be taken.

    The others are not in the order in which they will be taken, which depends on what is taken before.
    """
    own = aliased(table)
    taken_at = select(func.max(own.taken_at)).where(own.key_id == table.key_id).scalar_subquery()
    return (
        table.priority.desc(),
        func.coalesce(taken_at, literal(_NEVER)),
        table.created_at.asc(),
        table.id.asc(),
    )


def find_places(session: Session, table: type[QueuedRow], rows: Sequence[QueuedRow]) -> dict[str, int]:
    """Returns the places of all that waits in a table, from 1; nothing where none of `rows` waits."""
    if not any(row.state == QUEUED for row in rows):
        return {}
    return {row_id: place for place, row_id in enumerate(find_order(session, table), start=1)}


def count_waiting(session: Session, table: type[QueuedRow]) -> dict[int, int]:
    """Returns how much of a table waits, by priority."""
    counted = (
        select(table.priority, func.count().label("waiting"))
        .where(table.state == QUEUED)
        .group_by(table.priority)
    )
    return {row.priority: row.waiting for row in session.execute(counted)}


def find_oldest(session: Session, table: type[QueuedRow]) -> datetime | None:
    """Returns when the work of a table that has waited longest was submitted, or None."""
    oldest = select(table.created_at).where(table.state == QUEUED)
    return session.scalar(oldest.order_by(table.created_at).limit(1))


def find_order(session: Session, table: type[QueuedRow]) -> list[str]:
    """Returns the ids of all that waits in a table in the order in which one worker would take it."""
    rows = session.execute(
        select(table.id, table.key_id, table.priority, table.created_at)
        .where(table.state == QUEUED)
        .order_by(table.created_at, table.id)
    )
    waiting = [WaitingWork(*row) for row in rows]
    taken_at = (
        select(table.key_id, func.max(table.taken_at))
        .where(table.key_id.in_({one.key_id for one in waiting}), table.taken_at.is_not(None))
        .group_by(table.key_id)
    )
    return arrange(waiting, {key_id: time for key_id, time in session.execute(taken_at) if time})


def arrange(waiting: Sequence[WaitingWork], taken_at: Mapping[str, datetime]) -> list[str]:
    """Returns ids in the order in which the work, given oldest first, is taken, one after another.

    `taken_at` is when each key's last work was taken.
    """
    order: list[str] = []
    turn = count(1)
    # Keys as they were, then by the turns that they take here: each of these is later than any time before.
    last: dict[str, tuple[int, datetime]] = {key: (0, time) for key, time in taken_at.items()}
    for _, group in groupby(sorted(waiting, key=lambda one: -one.priority), key=lambda one: one.priority):
        queues: dict[str, deque[WaitingWork]] = {}
        for one in group:
            queues.setdefault(one.key_id, deque()).append(one)
        heads = [
            (last.get(key, (0, _NEVER)), own[0].created_at, own[0].id, key) for key, own in queues.items()
        ]
        heapq.heapify(heads)
        while heads:
            *_, key = heapq.heappop(heads)
            order.append(queues[key].popleft().id)
            last[key] = (next(turn), _NEVER)
            if queues[key]:
                head = queues[key][0]
                heapq.heappush(heads, (last[key], head.created_at, head.id, key))
    return order
