"""Idempotency keys: a repeated request answers with what the first one made."""

import hashlib
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from app.core import tables
from app.core.errors import IdempotencyKeyReused


def find(session: Session, key: str, body: bytes) -> str | None:
    """The id that an earlier request with this key made, or None. Raises IdempotencyKeyReused."""
    row = session.get(tables.IdempotencyKey, key)
    if row is None:
        return None
    if row.body_sha256 != _sha256(body):
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used with another body.",
            param="Idempotency-Key",
            hint="Use a fresh key for each new job.",
        )
    return row.resource_id


def remember(session: Session, key: str, body: bytes, resource_id: str) -> None:
    """Bind the key to what was made, in the transaction that makes it."""
    row = tables.IdempotencyKey(
        key=key, body_sha256=_sha256(body), resource_id=resource_id, created_at=datetime.now(UTC)
    )
    session.add(row)
    session.flush()


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
