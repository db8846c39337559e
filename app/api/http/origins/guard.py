"""Refuses requests that a browser sends for a page of another origin. Other clients are not affected.

An API without keys trusts every process that reaches its loopback address, and so any page open in a browser
on that machine. Such a page can send a form or an upload without reading the response (CSRF): so requests
that change something must come from this origin. Or it resolves its own name to this machine's address (DNS
rebinding): so without a key `Host` must be a name of this machine. A page can't change the headers that its
browser adds. See docs/decisions/0016.
"""

import ipaddress
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.access.auth import CACHE_SECONDS
from app.api.http.errors import send_error
from app.api.http.single_flight import SingleFlight
from app.core.errors.access import Forbidden, HostRefused, OriginRefused
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage.database import Database

HEALTH = "/health"
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS", "TRACE"}
_OWN_SITE = {"same-origin", "none"}  # none: a person typed the address
_DEFAULT_PORTS = {"http": 80, "https": 443}


class OriginGuardMiddleware:
    """Responds 403 before the key is checked and before any of the body is read."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._settings = settings
        self._database = database
        self._clock = clock
        self._finding: SingleFlight[bool] = SingleFlight()
        self._found_until = 0.0
        self._hosts = {
            host.lower() for host in (settings.host, settings.published_host, *settings.allowed_hosts)
        }
        self._origins = set(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                if scope["method"] not in _SAFE_METHODS:
                    self._check_origin(headers)
                await self._check_host(headers, scope["path"])
            except Forbidden as error:
                return await send_error(error, receive, send)
        await self._app(scope, receive, send)

    def _check_origin(self, headers: Headers) -> None:
        """Raise OriginRefused where the headers of a browser name another origin."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is None and site is None:
            return  # no browser: curl, the openai client
        if origin and origin.lower() in self._origins:
            return
        if site in _OWN_SITE or (site is None and origin and _is_same(origin, headers.get("host", ""))):
            return
        raise OriginRefused(
            f"A page of {origin or 'another site'} may not change anything here.",
            hint="Where that page is yours, or a proxy of yours stands before the API, add its origin to "
            "TUNESMITH_ALLOWED_ORIGINS, for example https://box.example.",
        )

    async def _check_host(self, headers: Headers, path: str) -> None:
        """Raise HostRefused where the API has no key and `Host` is not a name of this machine."""
        host = _host_name(headers.get("host", ""))
        if is_loopback(host) or host in self._hosts or self._settings.api_key:
            return
        if path == HEALTH:
            return  # It says nothing, and must not wait for a thread or the database.
        if await self._has_key():
            return
        raise HostRefused(
            f"This API has no key, and answers only under a name of this machine, not {host!r}.",
            hint="Ask http://127.0.0.1, add the name to TUNESMITH_ALLOWED_HOSTS, or set TUNESMITH_API_KEY.",
        )

    async def _has_key(self) -> bool:
        """Whether any key exists. One that was found counts for another second without a query."""
        if self._found_until > self._clock():
            return True
        has_key = await self._finding.run("keys", self._any_key_exists)
        if has_key:
            self._found_until = self._clock() + CACHE_SECONDS
        return has_key

    def _any_key_exists(self) -> bool:
        with self._database.snapshot() as session:
            return keys.any_exist(session)


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or a `localhost` name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_same(origin: str, host: str) -> bool:
    """Whether an origin has the host and port of `Host`. The scheme may differ: a proxy may end TLS."""
    try:
        parts = urlsplit(origin)
        if not parts.hostname:
            return False
        default = _DEFAULT_PORTS.get(parts.scheme)
        asked = urlsplit(f"{parts.scheme}://{host}")
        return (parts.hostname, parts.port or default) == (asked.hostname, asked.port or default)
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """`Host` without its port and an IPv6 address's brackets; empty where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
