"""What the routes of webhooks take and return. Knows no database session."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.core.net import MAX_URL
from app.core.storage import tables
from app.core.webhooks import subscriptions
from app.core.webhooks.deliveries import DeliveryState
from app.core.webhooks.subscriptions import EventType

_Url = Annotated[str, Field(min_length=1, max_length=MAX_URL)]
_Name = Annotated[str, Field(max_length=255)]
_EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=len(EventType))]


class NewWebhook(BaseModel):
    """A webhook to register."""

    model_config = ConfigDict(extra="forbid")

    url: _Url = Field(description="Where events are posted.", examples=["https://example.org/hooks"])
    event_types: _EventTypes = Field(
        list(EventType), description="Which events; default: all of them.", examples=[[EventType.SUCCEEDED]]
    )
    name: _Name = Field("", description="For people.", examples=["chat room"])


class WebhookChange(BaseModel):
    """What to change; a field that is left out stays."""

    model_config = ConfigDict(extra="forbid")

    url: _Url | None = Field(None, description="Where events are posted.")
    event_types: _EventTypes | None = Field(None, description="Which events.")
    name: _Name | None = Field(None, description="For people.")
    enabled: bool | None = Field(
        None, description="Whether it is told of anything; while not, what is due to it waits."
    )


class NewTestDelivery(BaseModel):
    """A test delivery."""

    model_config = ConfigDict(extra="forbid")

    event_type: EventType = Field(EventType.SUCCEEDED, description="As which event it comes.")


class WebhookRead(BaseModel):
    """Who is told when a job ends."""

    id: str = Field(description="Names the webhook.", examples=["wh_4kq1v9x2m7ahc3zt"])
    name: str = Field(description="For people.")
    url: str = Field(description="Where events are posted.")
    event_types: list[EventType] = Field(description="Which events.")
    enabled: bool = Field(description="Whether it is told of anything.")
    from_settings: bool = Field(description="Whether it comes from TUNESMITH_WEBHOOK_URL.")
    created_at: datetime = Field(description="When it was registered.")

    @classmethod
    def from_row(cls, row: tables.WebhookRow) -> "WebhookRead":
        """The webhook as the API shows it: without its secret."""
        return cls(
            id=row.id,
            name=row.name,
            url=row.url,
            event_types=[EventType(name) for name in row.event_types],
            enabled=row.is_enabled,
            from_settings=row.id == subscriptions.SETTINGS_ID,
            created_at=row.created_at,
        )


class CreatedWebhookRead(WebhookRead):
    """A webhook and its secret, which is not shown again."""

    secret: str = Field(description="Signs every delivery; give it to `client.webhooks.unwrap(secret=…)`.")

    @classmethod
    def from_row(cls, row: tables.WebhookRow) -> "CreatedWebhookRead":
        """The webhook with its secret, for the response that creates it."""
        return cls(**WebhookRead.from_row(row).model_dump(), secret=row.secret or "")


class DeliveryRead(BaseModel):
    """One event for one webhook, and what came of sending it."""

    id: str = Field(description="The header `webhook-id`, the same at each attempt.")
    event_type: EventType = Field(description="The event.")
    job: str | None = Field(description="The job that has ended; null: an evaluation, or a test.")
    state: DeliveryState = Field(
        description="`pending`: it is or will be tried. `delivered`: the receiver answered 2xx. `given_up`: "
        "not within a day; or a test that failed."
    )
    attempts: int = Field(description="How often it was tried, since it was last asked for.")
    response_status: int | None = Field(description="What the receiver answered last; null: nothing.")
    error: str | None = Field(description="Why the last attempt does not count.")
    next_attempt_at: datetime | None = Field(description="When it is tried next; null: never.")
    created_at: datetime = Field(description="When the job ended.")
    delivered_at: datetime | None = Field(description="When the receiver took it.")
    body: str = Field(description="What is sent, to the byte.")

    @classmethod
    def from_row(cls, row: tables.WebhookDeliveryRow) -> "DeliveryRead":
        """The delivery as the API shows it."""
        return cls(
            id=row.id,
            event_type=EventType(row.event_type),
            job=row.job_id,
            state=DeliveryState(row.state),
            attempts=row.attempts,
            response_status=row.response_status,
            error=row.error,
            next_attempt_at=row.next_attempt_at,
            created_at=row.created_at,
            delivered_at=row.delivered_at,
            body=row.body,
        )
