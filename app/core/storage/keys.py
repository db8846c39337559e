"""API keys: shown once when they are created, stored as a hash, compared in constant time.

A key has 256 random bits, so its plain SHA-256 can't be reversed by guessing.
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
    """Returns a new key's row, and the key itself, which is not stored."""
    secret = "tsk_" + secrets.token_urlsafe(32)
    key = tables.ApiKeyRow(id=new_id("key"), name=name, sha256=_sha256(secret), created_at=datetime.now(UTC))
    session.add(key)
    session.flush()
    return key, secret


def find_all(session: Session) -> list[tables.ApiKeyRow]:
    """Returns all keys, revoked ones too, oldest first."""
    return list(session.scalars(select(tables.ApiKeyRow).order_by(tables.ApiKeyRow.created_at)))


def revoke(session: Session, key_id: str) -> None:
    """Revoke a key. Raises NotFound."""
    key = session.get(tables.ApiKeyRow, key_id)
    if key is None:
        raise NotFound(f"There is no key {key_id!r}.", hint="`tunesmith keys list` shows their ids.")
    key.revoked_at = key.revoked_at or datetime.now(UTC)


def any_exist(session: Session) -> bool:
    """Whether at least one key is not revoked."""
    return (
        session.scalar(select(tables.ApiKeyRow.id).where(tables.ApiKeyRow.revoked_at.is_(None)).limit(1))
        is not None
    )


def is_valid(session: Session, secret: str) -> bool:
    """Whether this is a key that is not revoked."""
    wanted = _sha256(secret)
    hashes = session.scalars(select(tables.ApiKeyRow.sha256).where(tables.ApiKeyRow.revoked_at.is_(None)))
    # Every hash is compared: the time taken says nothing about which one was close.
    return sum(hmac.compare_digest(known, wanted) for known in hashes) > 0


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
