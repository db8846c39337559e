"""Errors of authentication, and of requests from other origins and host names."""

from typing import ClassVar

from app.core.errors import Conflict, TunesmithError


class Unauthorized(TunesmithError):
    """A key is needed: send `Authorization: Bearer <key>`."""

    type = "authentication_error"
    code = "unauthorized"


class Forbidden(TunesmithError):
    """This may not be asked from there."""

    type = "permission_error"
    code = "forbidden"


class OriginRefused(Forbidden):
    """A page of another origin may not change anything here."""

    code = "origin_refused"


class HostRefused(Forbidden):
    """An API without a key answers only under a name of its own machine."""

    code = "host_refused"


class ScopeMissing(Forbidden):
    """The key does not have the scope that this needs."""

    code = "scope_missing"


class FirstKeyNotAdmin(Conflict):
    """The first key needs the scope admin: without it nobody could make another one."""

    code = "first_key_not_admin"


class RateLimited(TunesmithError):
    """A limit of the key is reached. `limit`, where it is of requests or tokens: how many it may have."""

    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    counted: ClassVar[str] = "requests"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        limit: int | None = None,
        retry_after_seconds: int = 60,
    ) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class TokensSpent(RateLimited):
    """The tokens of the key are spent for the day."""

    code = "tokens_per_day_exceeded"
    counted = "tokens"


class KeyQueueFull(RateLimited):
    """As many jobs of the key are waiting as it may have."""

    code = "key_queue_full"
