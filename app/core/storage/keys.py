"""API keys: made once and shown once, stored as a hash, checked in constant time.

A key holds 256 random bits, so a plain SHA-256 of it can't be guessed back.
"""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.storage import tables
from app.core.storage.ids import new_id


def create(session: Session, name: str) -> tuple[tables.ApiKeyRow, str]:
    """A new key's row and the key itself, which is not kept."""
    secret = "tsk_" + secrets.token_urlsafe(32)
    key = tables.ApiKeyRow(id=new_id("key"), name=name, sha256=_sha256(secret), created_at=datetime.now(UTC))
    session.add(key)
    session.flush()
    return key, secret


def find_all(session: Session) -> list[tables.ApiKeyRow]:
    """Every key that was made, the oldest first."""
    return list(session.scalars(select(tables.ApiKeyRow).order_by(tables.ApiKeyRow.created_at)))


def revoke(session: Session, key_id: str) -> None:
    """Make a key worthless. Raises NotFound."""
    key = session.get(tables.ApiKeyRow, key_id)
    if key is None:
        raise NotFound(f"There is no key {key_id!r}.", hint="`tunesmith keys list` shows their ids.")
    key.revoked_at = key.revoked_at or datetime.now(UTC)


def any_exist(session: Session) -> bool:
    """Whether at least one key is in force."""
    return (
        session.scalar(select(tables.ApiKeyRow.id).where(tables.ApiKeyRow.revoked_at.is_(None)).limit(1))
        is not None
    )


def is_valid(session: Session, secret: str) -> bool:
    """Whether this key is in force."""
    wanted = _sha256(secret)
    hashes = session.scalars(select(tables.ApiKeyRow.sha256).where(tables.ApiKeyRow.revoked_at.is_(None)))
    # No early end: the time taken says nothing about which key came close.
    return sum(hmac.compare_digest(known, wanted) for known in hashes) > 0


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
