"""The outbox of webhooks: announce, claim, record, send again, prune. Knows no HTTP.

A delivery's row is written in the transaction that ends the job, so that neither exists without the other. A
claim puts the next attempt off by the length of a lease: where the process dies, the delivery is due again
when that has passed. Only the holder of the claim's token can record a result. A delivery may arrive twice,
with the same id; it is never lost. Nothing here commits: the caller's transaction does.
"""

import json
import random
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.orm import Session

from app.core.errors.webhooks import DeliveryNotFound
from app.core.specs.states import JobState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first
from app.core.webhooks import subscriptions
from app.core.webhooks.subscriptions import EventType

# The topic of `Database.listen`: its listeners are called once new deliveries are committed.
TOPIC = "deliveries"
LEASE_SECONDS = 30.0
FIRST_WAIT_SECONDS = 5.0
GIVE_UP_AFTER = timedelta(hours=24)
KEEP = timedelta(days=30)
TEST_JOB_ID = "job_0000000000000000"
_JITTER = 0.2


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True)
class Claim:
    """The right to make one attempt at a delivery."""

    delivery_id: str
    token: str
    webhook_id: str
    body: str


@dataclass(frozen=True)
class DeliveryOutcome:
    """The result of one attempt: the HTTP status, and why the attempt failed, or None where it did not."""

    status: int | None
    error: str | None


def announce(session: Session, job_id: str, state: JobState, *, now: datetime | None = None) -> None:
    """Write a delivery of a job's end for every enabled webhook that is registered for this event."""
    _announce(session, EventType.of(state), job_id, job_id, now or clock.now(session))


def announce_evaluation(
    session: Session, evaluation_id: str, event_type: EventType, *, now: datetime | None = None
) -> None:
    """Write a delivery of an evaluation's end for every enabled webhook that is registered for this event."""
    _announce(session, event_type, evaluation_id, None, now or clock.now(session))


def _announce(
    session: Session, event_type: EventType, subject_id: str, job_id: str | None, now: datetime
) -> None:
    enabled = select(tables.WebhookRow.id, tables.WebhookRow.event_types).where(tables.WebhookRow.is_enabled)
    # Locked, so that no webhook is deleted before its delivery is committed.
    found = session.execute(enabled.with_for_update(read=True))
    receivers = [webhook_id for webhook_id, types in found if event_type in types]
    if not receivers:
        return
    body = _body(event_type, subject_id, now)
    for webhook_id in receivers:
        session.add(_delivery(webhook_id, event_type, job_id, body, now))
    session.flush()
    session.info.setdefault("topics", set()).add(TOPIC)


def start_test(
    session: Session, webhook_id: str, event_type: EventType, *, now: datetime | None = None
) -> Claim:
    """Write a test delivery, which names no real job, and claim its only attempt. Raises WebhookNotFound."""
    now = now or clock.now(session)
    subscriptions.get(session, webhook_id)
    body = _body(event_type, TEST_JOB_ID, now)
    delivery = _delivery(webhook_id, event_type, None, body, now, give_up_at=now)
    session.add(delivery)
    session.flush()
    return _claim(delivery, now)


def is_any_due(session: Session, *, busy: Collection[str] = (), now: datetime | None = None) -> bool:
    """Whether a delivery is due that `claim` would take."""
    return session.scalar(select(exists().where(*_is_due(busy, now or clock.now(session))))) or False


def claim(
    session: Session, *, limit: int, each: int, busy: Collection[str] = (), now: datetime | None = None
) -> list[Claim]:
    """Claim at most `limit` due deliveries, the longest due first, at most `each` for one webhook.

    `busy` are ids of webhooks that are left out.
    """
    now = now or clock.now(session)
    due = session.scalars(
        select(tables.WebhookDeliveryRow)
        .where(*_is_due(busy, now))
        .order_by(tables.WebhookDeliveryRow.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken: list[Claim] = []
    for delivery in due:
        if sum(claim.webhook_id == delivery.webhook_id for claim in taken) < each:
            taken.append(_claim(delivery, now))
    session.flush()
    return taken


def record(session: Session, claim: Claim, outcome: DeliveryOutcome, *, now: datetime | None = None) -> bool:
    """Record the result of an attempt. Returns False where the claim is no longer the delivery's."""
    now = now or clock.now(session)
    delivery = session.scalar(
        select(tables.WebhookDeliveryRow)
        .where(
            tables.WebhookDeliveryRow.id == claim.delivery_id,
            tables.WebhookDeliveryRow.lease_token == claim.token,
        )
        .with_for_update()
    )
    if delivery is None:
        return False
    delivery.lease_token = None
    delivery.response_status, delivery.error = outcome.status, outcome.error
    if outcome.error is None:
        delivery.state, delivery.next_attempt_at, delivery.delivered_at = DeliveryState.DELIVERED, None, now
        return True
    delivery.next_attempt_at = now + timedelta(seconds=wait_seconds(delivery.attempts, random.random()))
    if delivery.next_attempt_at > delivery.give_up_at:
        delivery.state, delivery.next_attempt_at = DeliveryState.GIVEN_UP, None
    return True


def wait_seconds(attempts: int, chance: float) -> float:
    """Returns the wait after an attempt: doubled each time, a fifth more or less by `chance` in [0, 1)."""
    return FIRST_WAIT_SECONDS * 2.0 ** (attempts - 1) * (1 + _JITTER * (2 * chance - 1))


def send_again(
    session: Session, webhook_id: str, delivery_id: str, *, now: datetime | None = None
) -> tables.WebhookDeliveryRow:
    """Make a delivery due now, whatever its state, with another day of attempts.

    An attempt under way loses its claim, since recording its success would cancel the repetition. Raises
    DeliveryNotFound.
    """
    now = now or clock.now(session)
    delivery = get(session, webhook_id, delivery_id, lock=True)
    delivery.state = DeliveryState.PENDING
    delivery.attempts = 0
    delivery.give_up_at = now + GIVE_UP_AFTER
    delivery.lease_token, delivery.next_attempt_at = None, now
    session.flush()
    session.info.setdefault("topics", set()).add(TOPIC)
    return delivery


def get(
    session: Session, webhook_id: str, delivery_id: str, *, lock: bool = False
) -> tables.WebhookDeliveryRow:
    """Returns a delivery of this webhook. Raises DeliveryNotFound."""
    delivery = session.get(tables.WebhookDeliveryRow, delivery_id, with_for_update=lock or None)
    if delivery is None or delivery.webhook_id != webhook_id:
        raise DeliveryNotFound(
            f"Webhook {webhook_id} has no delivery {delivery_id!r}.",
            hint=f"GET /webhooks/{webhook_id}/deliveries lists them.",
        )
    return delivery


def find_page(
    session: Session, webhook_id: str, *, after: str | None, limit: int
) -> tuple[list[tables.WebhookDeliveryRow], str | None]:
    """Returns a page of a webhook's deliveries, newest first, and the next cursor. Raises WebhookNotFound."""
    subscriptions.get(session, webhook_id)
    query = select(tables.WebhookDeliveryRow).where(tables.WebhookDeliveryRow.webhook_id == webhook_id)
    return newest_first(session, query, tables.WebhookDeliveryRow, after=after, limit=limit)


def prune(session: Session, *, now: datetime | None = None) -> None:
    """Remove deliveries older than `KEEP`."""
    before = (now or clock.now(session)) - KEEP
    session.execute(delete(tables.WebhookDeliveryRow).where(tables.WebhookDeliveryRow.created_at < before))


def _is_due(busy: Collection[str], now: datetime) -> list[ColumnElement[bool]]:
    enabled = select(tables.WebhookRow.id).where(tables.WebhookRow.is_enabled)
    return [
        tables.WebhookDeliveryRow.state == DeliveryState.PENDING,
        tables.WebhookDeliveryRow.next_attempt_at <= now,
        tables.WebhookDeliveryRow.webhook_id.in_(enabled),
        tables.WebhookDeliveryRow.webhook_id.not_in(busy),
    ]


def _claim(delivery: tables.WebhookDeliveryRow, now: datetime) -> Claim:
    delivery.lease_token = secrets.token_hex(16)
    delivery.next_attempt_at = now + timedelta(seconds=LEASE_SECONDS)
    delivery.attempts += 1
    return Claim(delivery.id, delivery.lease_token, delivery.webhook_id, delivery.body)


def _delivery(
    webhook_id: str,
    event_type: EventType,
    job_id: str | None,
    body: str,
    now: datetime,
    give_up_at: datetime | None = None,
) -> tables.WebhookDeliveryRow:
    return tables.WebhookDeliveryRow(
        id=new_id("whd"),
        webhook_id=webhook_id,
        event_type=event_type,
        job_id=job_id,
        body=body,
        state=DeliveryState.PENDING,
        attempts=0,
        next_attempt_at=now,
        give_up_at=give_up_at or now + GIVE_UP_AFTER,
        created_at=now,
    )


def _body(event_type: EventType, subject_id: str, now: datetime) -> str:
    """Returns the JSON that is sent. It is stored: every attempt sends and signs the same bytes."""
    event = {
        "id": new_id("evt"),
        "object": "event",
        "created_at": int(now.timestamp()),
        "type": event_type,
        "data": {"id": subject_id},
    }
    return json.dumps(event, separators=(",", ":"))
