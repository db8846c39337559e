"""Lets pages of the allowed origins call the API from a browser: preflights, and headers of every response.

Knows no routes and no keys. What a page of another origin may not change, `guard.py` refuses.
"""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from app.api.http.errors import to_response
from app.core.errors.access import OriginRefused

_LIMITS = tuple(
    f"x-ratelimit-{name}-{kind}"
    for kind in ("requests", "tokens")
    for name in ("limit", "remaining", "reset")
)
# Headers of responses that clients read, besides those that a browser shows to every page.
_SHOWN = (
    "content-disposition",
    "location",
    "retry-after",
    "x-request-id",
    "x-should-retry",
    "x-tunesmith-model",
    "etag",
    *_LIMITS,
)
_MAX_AGE_SECONDS = 600


class AllowedOrigins(CORSMiddleware):
    """CORS for these origins; a preflight of another one is refused in the common format."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("*",),
            # A page of the internet asks whether it may call an address of this machine or network.
            allow_private_network=True,
            expose_headers=_SHOWN,
            max_age=_MAX_AGE_SECONDS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The response to the browser's question whether a page may send a request."""
        origin = request_headers["origin"]
        if self.is_allowed_origin(origin):
            return super().preflight_response(request_headers)
        return to_response(
            OriginRefused(
                f"A page of {origin} may not call this API.",
                hint="Where that page is yours, add its origin to TUNESMITH_ALLOWED_ORIGINS.",
            )
        )
