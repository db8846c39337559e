"""Webhooks, which are called when a job or an evaluation ends: register, find, change, delete.

Knows nothing of what is sent.

One webhook may come from the settings: its row is updated from them, and its secret is not stored. Nothing
here commits: the caller's transaction does.
"""

from enum import StrEnum

from sqlalchemy import delete as sql_delete, func, select
from sqlalchemy.orm import Session

from app.core.errors import Conflict
from app.core.errors.webhooks import WebhookFixed, WebhookNotFound
from app.core.net import new_webhook_secret
from app.core.settings import Settings
from app.core.specs.states import EvaluationState, JobState
from app.core.storage import clock, tables
from app.core.storage.ids import derive_id, new_id
from app.core.storage.paging import newest_first

MAX_WEBHOOKS = 100
SETTINGS_ID = derive_id("wh", "settings")


class EventType(StrEnum):
    """The events that webhooks can be called for."""

    SUCCEEDED = "fine_tuning.job.succeeded"
    FAILED = "fine_tuning.job.failed"
    CANCELLED = "fine_tuning.job.cancelled"
    EVALUATION_SUCCEEDED = "eval.run.succeeded"
    EVALUATION_FAILED = "eval.run.failed"
    EVALUATION_CANCELLED = "eval.run.canceled"

    @classmethod
    def of(cls, state: JobState) -> "EventType":
        """Returns the event of a job that ended in `state`."""
        return cls(f"fine_tuning.job.{state}")

    @classmethod
    def of_evaluation(cls, state: EvaluationState) -> "EventType":
        """Returns the event of an evaluation that ended in `state`; the names are OpenAI's."""
        return {
            EvaluationState.SUCCEEDED: cls.EVALUATION_SUCCEEDED,
            EvaluationState.CANCELLED: cls.EVALUATION_CANCELLED,
        }.get(state, cls.EVALUATION_FAILED)


def create(session: Session, *, url: str, event_types: list[EventType], name: str) -> tables.WebhookRow:
    """Register a webhook with a fresh secret. Raises Conflict where there are too many."""
    if (session.scalar(select(func.count()).select_from(tables.WebhookRow)) or 0) >= MAX_WEBHOOKS:
        raise Conflict(f"There are {MAX_WEBHOOKS} webhooks already.", hint="Delete one that is not needed.")
    webhook = tables.WebhookRow(
        id=new_id("wh"),
        name=name,
        url=url,
        secret=new_webhook_secret(),
        event_types=list(event_types),
        is_enabled=True,
        created_at=clock.now(session),
    )
    session.add(webhook)
    session.flush()
    return webhook


def get(session: Session, webhook_id: str) -> tables.WebhookRow:
    """Returns a webhook by its id. Raises WebhookNotFound."""
    webhook = session.get(tables.WebhookRow, webhook_id)
    if webhook is None:
        raise WebhookNotFound(f"There is no webhook {webhook_id!r}.", hint="GET /webhooks lists them.")
    return webhook


def find_page(
    session: Session, *, after: str | None, limit: int
) -> tuple[list[tables.WebhookRow], str | None]:
    """Returns a page of webhooks, newest first, and the cursor of the next page."""
    return newest_first(session, select(tables.WebhookRow), tables.WebhookRow, after=after, limit=limit)


def change(
    session: Session,
    webhook_id: str,
    *,
    url: str | None = None,
    event_types: list[EventType] | None = None,
    name: str | None = None,
    is_enabled: bool | None = None,
) -> tables.WebhookRow:
    """Change the fields that are not None. Raises WebhookNotFound and WebhookFixed."""
    webhook = _get_own(session, webhook_id)
    webhook.url = webhook.url if url is None else url
    webhook.event_types = webhook.event_types if event_types is None else list(event_types)
    webhook.name = webhook.name if name is None else name
    webhook.is_enabled = webhook.is_enabled if is_enabled is None else is_enabled
    session.flush()
    return webhook


def delete(session: Session, webhook_id: str) -> None:
    """Remove a webhook and its deliveries. Raises WebhookNotFound and WebhookFixed."""
    _delete(session, _get_own(session, webhook_id))


def follow_settings(session: Session, settings: Settings) -> None:
    """Bring the row of the settings' webhook up to date, or remove it where the settings have none."""
    webhook = session.get(tables.WebhookRow, SETTINGS_ID)
    if not settings.webhook_url:
        if webhook is not None:
            _delete(session, webhook)
        return
    if webhook is None:
        webhook = tables.WebhookRow(
            id=SETTINGS_ID, name="settings", secret=None, created_at=clock.now(session)
        )
        session.add(webhook)
    webhook.url, webhook.event_types, webhook.is_enabled = settings.webhook_url, list(EventType), True


def secret_of(webhook: tables.WebhookRow, settings: Settings) -> str:
    """Returns the secret that signs the webhook's deliveries."""
    if webhook.secret is not None:
        return webhook.secret
    return settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""


def _get_own(session: Session, webhook_id: str) -> tables.WebhookRow:
    if webhook_id == SETTINGS_ID:
        raise WebhookFixed(
            "This webhook comes from the settings.", hint="Change TUNESMITH_WEBHOOK_URL and restart the API."
        )
    return get(session, webhook_id)


def _delete(session: Session, webhook: tables.WebhookRow) -> None:
    of_webhook = tables.WebhookDeliveryRow.webhook_id == webhook.id
    session.execute(sql_delete(tables.WebhookDeliveryRow).where(of_webhook))
    session.delete(webhook)
    session.flush()
