"""Errors of authentication, and of requests from other origins and host names."""

from app.core.errors import TunesmithError


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
