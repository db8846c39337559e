"""The fields of keys and of usage that commands show. Fields that another version adds are ignored."""

from datetime import date, datetime

from pydantic import BaseModel


class KeyLimitsView(BaseModel):
    """What a key may take."""

    requests_per_minute: int | None = None
    queued_jobs: int | None = None
    tokens_per_day: int | None = None


class KeyView(BaseModel):
    """A key."""

    id: str | None
    name: str | None
    scopes: list[str]
    limits: KeyLimitsView
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class UsageView(BaseModel):
    """What one key has used of one model on one day."""

    day: date
    key: str | None = None
    key_name: str | None = None
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    training_tokens: int = 0
    training_seconds: float = 0
    export_seconds: float = 0


def limits_text(limits: KeyLimitsView) -> str:
    """The limits that hold, in words."""
    named = {
        "requests a minute": limits.requests_per_minute,
        "waiting jobs": limits.queued_jobs,
        "tokens a day": limits.tokens_per_day,
    }
    return ", ".join(f"{count} {what}" for what, count in named.items() if count is not None)


def end_text(key: KeyView) -> str:
    """Until when a key is in force."""
    if key.revoked_at:
        return f"revoked {key.revoked_at.astimezone():%Y-%m-%d %H:%M}"
    if key.expires_at is None:
        return "never ends"
    is_over = key.expires_at <= datetime.now(key.expires_at.tzinfo)
    return f"{'ended' if is_over else 'ends'} {key.expires_at.astimezone():%Y-%m-%d %H:%M}"
