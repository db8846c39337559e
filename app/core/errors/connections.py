"""Errors of connections: the request was not received whole. Most are sent before any route is known."""

from app.core.errors import InvalidRequest, TunesmithError


class RequestUnreadable(InvalidRequest):
    """This is not an HTTP request."""

    code = "request_unreadable"


class HeadersTooLarge(InvalidRequest):
    """The request's headers are too large."""

    code = "headers_too_large"


class RequestTooSlow(InvalidRequest):
    """The request did not arrive in time."""

    code = "request_too_slow"


class TooManyConnections(TunesmithError):
    """Too many connections are open."""

    type = "rate_limit_error"
    code = "too_many_connections"
