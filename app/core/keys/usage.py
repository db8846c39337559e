"""What keys have used of models, by day (UTC): added up in the database, and read. Nothing here commits."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.core.storage import tables
from app.core.storage.upserts import add_up


@dataclass(frozen=True, order=True)
class UsageKey:
    """Whose usage, of what, when. `key_id` is empty for requests without a stored key."""

    key_id: str
    day: date
    model: str


@dataclass
class Amounts:
    """What was used. `requests` are those to models, `training_seconds` those of jobs, times their GPUs."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    training_tokens: int = 0
    training_seconds: float = 0.0
    export_seconds: float = 0.0

    def add(self, other: "Amounts") -> None:
        """Add what another has."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def add(session: Session, used: Mapping[UsageKey, Amounts]) -> None:
    """Add to what is stored."""
    # In one order in every process, so that two of them never wait for each other's rows.
    rows = [asdict(key) | asdict(used[key]) for key in sorted(used)]
    add_up(session, tables.UsageRow, rows)


def count_tokens(session: Session, key_id: str, day: date) -> int:
    """Returns the tokens that a key has read and made on a day, without those of training."""
    row = tables.UsageRow
    tokens = func.sum(row.prompt_tokens + row.completion_tokens)
    return int(session.scalar(select(tokens).where(row.key_id == key_id, row.day == day)) or 0)


def is_spent(key_id: InstrumentedAttribute[str], day: date) -> ColumnElement[bool]:
    """A condition: the key of a row has used its tokens of the day."""
    key, row = tables.ApiKeyRow, tables.UsageRow
    used = (
        select(func.coalesce(func.sum(row.prompt_tokens + row.completion_tokens), 0))
        .where(row.key_id == key.id, row.day == day)
        .correlate(key)
        .scalar_subquery()
    )
    is_at_limit = and_(key.tokens_per_day.is_not(None), key.tokens_per_day <= used)
    return select(key.id).where(key.id == key_id, is_at_limit).correlate(key_id.class_).exists()


def find(
    session: Session, *, key_id: str | None, model: str | None, since: date, until: date, limit: int
) -> list[tables.UsageRow]:
    """Returns what was used on the days from `since` to `until`, the latest first."""
    row = tables.UsageRow
    query = select(row).where(row.day >= since, row.day <= until)
    if key_id is not None:
        query = query.where(row.key_id == key_id)
    if model is not None:
        query = query.where(row.model == model)
    return list(session.scalars(query.order_by(row.day.desc(), row.key_id, row.model).limit(limit)))
