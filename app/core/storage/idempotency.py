"""Recognizes repeated requests, so that a repetition returns what the first request made.

A request is identified by its Idempotency-Key, within its method and path. A request without a key is
identified by its content, and counts as a repetition only where its headers say that it is a retry: a person
may want the same thing twice. Nothing here commits: the caller's transaction does.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.core.errors.storage import IdempotencyKeyReused
from app.core.storage import tables

KEY_HOURS = 24
# OpenAI's client times out after 10 minutes and retries twice.
RETRY_MINUTES = 30


@dataclass(frozen=True)
class Identity:
    """What identifies a request.

    `key` is the Idempotency-Key, `client` the API key, `body` the SHA-256 of the content, `retries` how
    often the client says that it has sent this request before.
    """

    method: str
    path: str
    body: str
    key: str | None = None
    client: str | None = None
    retries: int = 0
    arrived_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def may_repeat(self) -> bool:
        """Whether an earlier request may have made what this one asks for."""
        return self.key is not None or self.retries > 0

    @property
    def id(self) -> str:
        """The id of the request's row: a hash, from which neither key can be read."""
        known_by = ["key", self.key] if self.key is not None else ["content", self.client or "", self.body]
        return digest(part.encode() for part in [self.method, self.path, *known_by])


def digest(parts: Iterable[bytes]) -> str:
    """Returns the SHA-256, in hex, over parts and their lengths."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8))
        total.update(part)
    return total.hexdigest()


def find(session: Session, request: Identity, *, now: datetime | None = None) -> str | None:
    """Returns the id of what this request made before, or None. Raises IdempotencyKeyReused."""
    return made_by(find_row(session, request), request, now=now)


def find_row(session: Session, request: Identity) -> tables.IdempotencyKeyRow | None:
    """Returns the row with the request's id, expired or not."""
    added: dict[str, tables.IdempotencyKeyRow] = session.info.get("idempotency_keys", {})
    with session.no_autoflush:  # what this transaction adds is written as a whole, at its end
        return added.get(request.id) or session.get(tables.IdempotencyKeyRow, request.id)


def made_by(
    row: tables.IdempotencyKeyRow | None, request: Identity, *, now: datetime | None = None
) -> str | None:
    """Returns the id of what this request made before, by its row, or None where there is nothing.

    Raises IdempotencyKeyReused.
    """
    if row is None or row.created_at < _oldest(request, now or datetime.now(UTC)):
        return None
    if row.body_sha256 != request.body:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used with another body.",
            param="Idempotency-Key",
            hint=f"Use a fresh key for each new thing; a key is free again after {KEY_HOURS} hours.",
        )
    # A retry may overtake the request that it repeats.
    is_overtaken = row.retries > 0 and row.created_at >= request.arrived_at
    return row.resource_id if request.may_repeat or is_overtaken else None


def remember(
    session: Session,
    request: Identity,
    resource_id: str,
    *,
    row: tables.IdempotencyKeyRow | None,
    now: datetime | None = None,
) -> None:
    """Record what the request made, in the transaction that makes it; `row` is what `find_row` returned."""
    if row is None:
        row = tables.IdempotencyKeyRow(id=request.id)
        session.add(row)
        session.info.setdefault("idempotency_keys", {})[request.id] = row
    row.body_sha256, row.resource_id = request.body, resource_id
    row.retries, row.created_at = request.retries, now or datetime.now(UTC)


def forget_earlier(session: Session, request: Identity) -> None:
    """Forget earlier requests with the content of a request that failed, so that its retry is carried out."""
    if request.may_repeat:
        return
    is_earlier = tables.IdempotencyKeyRow.created_at < request.arrived_at
    session.execute(
        delete(tables.IdempotencyKeyRow).where(tables.IdempotencyKeyRow.id == request.id, is_earlier)
    )


def prune(session: Session, *, now: datetime | None = None) -> None:
    """Remove expired rows."""
    before = (now or datetime.now(UTC)) - timedelta(hours=KEY_HOURS)
    session.execute(delete(tables.IdempotencyKeyRow).where(tables.IdempotencyKeyRow.created_at < before))


def _oldest(request: Identity, now: datetime) -> datetime:
    return now - (timedelta(minutes=RETRY_MINUTES) if request.key is None else timedelta(hours=KEY_HOURS))
