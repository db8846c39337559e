"""API keys: shown once when they are created, stored as a hash, compared in constant time.

A key has 256 random bits, so its plain SHA-256 can't be reversed by guessing. Nothing here commits.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.errors.access import FirstKeyNotAdmin
from app.core.keys.scopes import Scope, allowed
from app.core.storage import clock, tables
from app.core.storage.ids import new_id


@dataclass(frozen=True)
class KeyLimits:
    """What a key may take; None: as much as it wants."""

    requests_per_minute: int | None = None
    queued_jobs: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who sends a request: a stored key; or the owner, by the settings' key or while no key exists."""

    key_id: str | None = None
    name: str | None = None
    scopes: frozenset[Scope] = allowed([Scope.ADMIN])  # with those that they include
    limits: KeyLimits = KeyLimits()

    @property
    def is_admin(self) -> bool:
        """Whether the caller may do everything."""
        return Scope.ADMIN in self.scopes


OWNER = Caller()


def create(
    session: Session,
    name: str,
    *,
    scopes: Iterable[Scope] = (Scope.ADMIN,),
    limits: KeyLimits = KeyLimits(),
    expires_at: datetime | None = None,
) -> tuple[tables.ApiKeyRow, str]:
    """Returns a new key's row, and the key itself, which is not stored."""
    secret = "tsk_" + secrets.token_urlsafe(32)
    key = tables.ApiKeyRow(
        id=new_id("key"),
        name=name,
        sha256=_sha256(secret),
        scopes=sorted(scopes),
        **asdict(limits),
        expires_at=expires_at,
        created_at=clock.now(session),
    )
    session.add(key)
    session.flush()
    return key, secret


def find_all(session: Session) -> list[tables.ApiKeyRow]:
    """Returns all keys, revoked ones too, oldest first."""
    return list(session.scalars(select(tables.ApiKeyRow).order_by(tables.ApiKeyRow.created_at)))


def get(session: Session, key_id: str) -> tables.ApiKeyRow:
    """Returns a key. Raises NotFound."""
    key = session.get(tables.ApiKeyRow, key_id, populate_existing=True)
    if key is None:
        raise NotFound(f"There is no key {key_id!r}.", hint="`tunesmith keys list` shows their ids.")
    return key


def change(session: Session, key_id: str, **columns: Any) -> tables.ApiKeyRow:
    """Set columns of a key. Raises NotFound."""
    key = get(session, key_id)
    for name, value in columns.items():
        setattr(key, name, value)
    session.flush()
    return key


def revoke(session: Session, key_id: str) -> None:
    """Revoke a key. Raises NotFound."""
    key = get(session, key_id)
    key.revoked_at = key.revoked_at or clock.now(session)


def any_exist(session: Session) -> bool:
    """Whether at least one key is not revoked; one that has expired is there, too: the API stays closed."""
    return (
        session.scalar(select(tables.ApiKeyRow.id).where(tables.ApiKeyRow.revoked_at.is_(None)).limit(1))
        is not None
    )


def refuse_lockout(session: Session, scopes: Iterable[Scope]) -> None:
    """Raise FirstKeyNotAdmin where a key with these scopes would leave nobody who may make keys."""
    if Scope.ADMIN not in scopes and not any_exist(session):
        raise FirstKeyNotAdmin


def find_valid(session: Session, secret: str) -> tables.ApiKeyRow | None:
    """Returns the key that this is, unless it is revoked; it may have expired."""
    wanted = _sha256(secret)
    rows = session.scalars(select(tables.ApiKeyRow).where(tables.ApiKeyRow.revoked_at.is_(None)))
    # Every hash is compared: the time taken says nothing about which one was close.
    found = [row for row in rows if hmac.compare_digest(row.sha256, wanted)]
    return found[0] if found else None


def has_expired(key: tables.ApiKeyRow, now: datetime) -> bool:
    """Whether a key's time is over."""
    return key.expires_at is not None and key.expires_at <= now


def limits_of(key: tables.ApiKeyRow) -> KeyLimits:
    """Returns the limits of a key."""
    return KeyLimits(key.requests_per_minute, key.queued_jobs, key.tokens_per_day)


def caller_of(key: tables.ApiKeyRow) -> Caller:
    """Returns whoever sends requests with a key."""
    return Caller(key.id, key.name, allowed(map(Scope, key.scopes)), limits_of(key))


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
