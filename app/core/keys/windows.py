"""How many requests of a key may be sent in the present minute, over all API processes on the database.

A process takes permits in blocks, a twentieth of the limit at a time, so that a request seldom writes and a
row is written at most some twenty times a minute, and once more for each process. The processes together
never hand out more than the limit. What one has taken and not used is lost to the others until the minute is
over: with N processes a request may be refused up to N - 1 blocks before the limit. Minutes are those of the
database's clock.
"""

import math
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from app.core.storage import clock, tables
from app.core.storage.upserts import insert_missing

_BLOCKS = 20
MINUTE = 60


@dataclass(frozen=True)
class Permits:
    """Permits that a process took: how many, how many are left for all, and the seconds until they end."""

    count: int
    left: int
    seconds: float


def take(session: Session, key_id: str, limit: int, *, now: datetime | None = None) -> Permits:
    """Take a block of permits; `count` is 0 where none is left in this minute."""
    seconds = (now or clock.now(session)).timestamp()
    minute = int(seconds // MINUTE)
    table = tables.RequestWindowRow
    insert_missing(session, table, {"key_id": key_id, "minute": minute, "taken": 0})
    row = session.get_one(table, key_id, with_for_update=True, populate_existing=True)
    if row.minute != minute:
        row.minute, row.taken = minute, 0
    count = max(0, min(math.ceil(limit / _BLOCKS), limit - row.taken))
    row.taken += count
    session.flush()
    return Permits(count, max(0, limit - row.taken), MINUTE - seconds % MINUTE)
