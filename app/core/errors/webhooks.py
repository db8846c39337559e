"""Errors of webhooks and their deliveries."""

from app.core.errors import Conflict, InvalidRequest, NotFound


class TargetRefused(InvalidRequest):
    """Webhooks do not go there."""

    code = "webhook_target_refused"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, param="url", hint=hint)


class WebhookNotFound(NotFound):
    """There is no such webhook."""

    code = "webhook_not_found"


class DeliveryNotFound(NotFound):
    """There is no such delivery."""

    code = "delivery_not_found"


class WebhookFixed(Conflict):
    """The settings have it so."""

    code = "webhook_fixed"
