"""Webhooks: register, list, change, delete, test; the log of their deliveries, and sending one again."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body, Path, Response
from sqlalchemy.orm import Session

from app.api.deps import After, Limit, Services, ServicesDep
from app.api.http.errors import documented
from app.api.http.idempotency import IdempotentRequestDep
from app.api.schemas import Page
from app.api.webhooks.schemas import (
    CreatedWebhookRead,
    DeliveryRead,
    NewTestDelivery,
    NewWebhook,
    WebhookChange,
    WebhookRead,
)
from app.core import net
from app.core.settings import Settings
from app.core.webhooks import deliveries, subscriptions
from app.core.webhooks.deliveries import Claim

router = APIRouter(prefix="/webhooks", tags=["Webhooks"])
WebhookId = Annotated[str, Path(description="The webhook's id.", examples=["wh_4kq1v9x2m7ahc3zt"])]
DeliveryId = Annotated[str, Path(description="The delivery's id.", examples=["whd_4kq1v9x2m7ahc3zt"])]


@router.post("", status_code=201, summary="Register a webhook", responses=documented(409))
def create_webhook(
    body: Annotated[NewWebhook, Body()],
    idempotent: IdempotentRequestDep,
    response: Response,
    services: ServicesDep,
) -> CreatedWebhookRead:
    """Be told when jobs end. The answer holds the `secret` that signs every delivery: it is shown only here.

    Each event is a POST of `{"id", "object": "event", "created_at", "type", "data": {"id": <job>}}`, signed
    so that `unwrap()` of OpenAI's clients and every Standard Webhooks library accept it. Anything but 2xx
    within 15 seconds is tried again, with growing waits, for a day. An event may come twice, with the same
    `webhook-id`.
    """

    def create(session: Session) -> CreatedWebhookRead:
        row = subscriptions.create(session, url=body.url, event_types=body.event_types, name=body.name)
        return CreatedWebhookRead.from_row(row)

    webhook = idempotent.find_earlier(_find)
    if webhook is None:
        _check_target(body.url, services.settings)
        webhook = idempotent.create(create, find=_find)
    response.headers["location"] = f"/webhooks/{webhook.id}"
    return webhook


@router.get("", summary="List webhooks")
def list_webhooks(services: ServicesDep, after: After = None, limit: Limit = 50) -> Page[WebhookRead]:
    """Webhooks, the newest first."""
    with services.database.snapshot() as session:
        rows, cursor = subscriptions.find_page(session, after=after, limit=limit)
    return Page(data=[WebhookRead.from_row(row) for row in rows], next=cursor)


@router.get("/{webhook_id}", summary="Show a webhook", responses=documented(404))
def show_webhook(webhook_id: WebhookId, services: ServicesDep) -> WebhookRead:
    """Everything but the secret."""
    with services.database.snapshot() as session:
        return WebhookRead.from_row(subscriptions.get(session, webhook_id))


@router.patch("/{webhook_id}", summary="Change a webhook", responses=documented(404, 409))
def change_webhook(
    webhook_id: WebhookId, body: Annotated[WebhookChange, Body()], services: ServicesDep
) -> WebhookRead:
    """Change where it goes or what it is told, or switch it off for a while. The secret stays."""
    if body.url is not None:
        _check_target(body.url, services.settings)
    with services.database.transaction() as session:
        row = subscriptions.change(
            session,
            webhook_id,
            url=body.url,
            event_types=body.event_types,
            name=body.name,
            is_enabled=body.enabled,
        )
        return WebhookRead.from_row(row)


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook", responses=documented(404, 409))
def delete_webhook(webhook_id: WebhookId, services: ServicesDep) -> None:
    """Delete a webhook and its log; what was still to be sent is not."""
    with services.database.transaction() as session:
        subscriptions.delete(session, webhook_id)


@router.post("/{webhook_id}/test", summary="Test a webhook", responses=documented(404))
async def send_test(
    webhook_id: WebhookId, services: ServicesDep, body: Annotated[NewTestDelivery | None, Body()] = None
) -> DeliveryRead:
    """Send an event of a job that does not exist, once and now; the answer says what came of it."""
    claim = await to_thread.run_sync(_start_test, services, webhook_id, body or NewTestDelivery())
    await services.deliverer.attempt(claim)
    return await to_thread.run_sync(_show_delivery, services, webhook_id, claim.delivery_id)


@router.get("/{webhook_id}/deliveries", summary="Log of a webhook", responses=documented(404))
def list_deliveries(
    webhook_id: WebhookId, services: ServicesDep, after: After = None, limit: Limit = 50
) -> Page[DeliveryRead]:
    """Deliveries of the last 30 days, the newest first: what was sent and answered, what is next."""
    with services.database.snapshot() as session:
        rows, cursor = deliveries.find_page(session, webhook_id, after=after, limit=limit)
    return Page(data=[DeliveryRead.from_row(row) for row in rows], next=cursor)


@router.get("/{webhook_id}/deliveries/{delivery_id}", summary="Show a delivery", responses=documented(404))
def show_delivery(webhook_id: WebhookId, delivery_id: DeliveryId, services: ServicesDep) -> DeliveryRead:
    """What was sent, what was answered, when it is tried next."""
    return _show_delivery(services, webhook_id, delivery_id)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    summary="Send a delivery again",
    responses=documented(404),
)
def redeliver(webhook_id: WebhookId, delivery_id: DeliveryId, services: ServicesDep) -> DeliveryRead:
    """Send it again now, delivered or not, with the same `webhook-id`; retried for another day."""
    with services.database.transaction() as session:
        return DeliveryRead.from_row(deliveries.send_again(session, webhook_id, delivery_id))


def _check_target(url: str, settings: Settings) -> None:
    """Raises TargetRefused."""
    net.resolve_allowed_addresses(net.parse_webhook_url(url), allow_private=settings.webhook_allow_private)


def _find(session: Session, webhook_id: str) -> CreatedWebhookRead:
    """The webhook with its secret, for a repeated request, whose sender was meant to receive the secret."""
    return CreatedWebhookRead.from_row(subscriptions.get(session, webhook_id))


def _start_test(services: Services, webhook_id: str, body: NewTestDelivery) -> Claim:
    with services.database.transaction() as session:
        return deliveries.start_test(session, webhook_id, body.event_type)


def _show_delivery(services: Services, webhook_id: str, delivery_id: str) -> DeliveryRead:
    with services.database.snapshot() as session:
        return DeliveryRead.from_row(deliveries.get(session, webhook_id, delivery_id))
