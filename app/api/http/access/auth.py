"""Authentication: once a key exists, every request needs one. Runs before any of the body is read."""

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope as RequestScope, Send

from app.api.http.access.limits import RateHeaders, RequestLimits
from app.api.http.access.scopes import asks_model, find_scopes
from app.api.http.errors import send_error
from app.api.http.single_flight import SingleFlight
from app.core.errors import TunesmithError
from app.core.errors.access import ScopeMissing, Unauthorized
from app.core.keys import records
from app.core.keys.records import OWNER, Caller
from app.core.keys.scopes import Scope
from app.core.settings import Settings
from app.core.storage import clock
from app.core.storage.database import Database
from app.dashboard.pages import is_page

DOCS_ASSETS = "/docs/assets"
CACHE_SECONDS = 1.0
_OPEN_PATHS = {"/health", "/ready", "/openapi.json"}
_CALLER = "caller"

# Declares the scheme in the OpenAPI document; AuthMiddleware checks the key.
bearer = HTTPBearer(
    auto_error=False,
    description="`Authorization: Bearer <key>`. Needed once TUNESMITH_API_KEY is set or a key was made with "
    "`tunesmith keys create`.",
)


class AuthMiddleware:
    """Responds 401 to a request without a valid key, unless no key exists; 403 where its key lacks the scope.

    Responds 429 where a limit of the key is reached. A key that was accepted is accepted for another second
    without a query of the database.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        database: Database,
        limits: RequestLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._settings = settings
        self._database = database
        self._limits = limits
        self._clock = clock
        self._accepted: dict[bytes, tuple[Caller, float]] = {}
        self._finding: SingleFlight[Caller] = SingleFlight()

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            return await self._app(scope, receive, send)
        headers: RateHeaders = {}
        try:
            caller = await self._find_caller(bearer_key(scope))
            needed = find_scopes(scope["method"], scope["path"])
            may = not caller.scopes.isdisjoint(needed)
            asks = may and asks_model(scope["method"], scope["path"])
            # Refused requests count too: a loop of them has an end.
            headers = await self._limits.admit(caller, asks_model=asks)
            if not may:
                raise _explain_scopes(caller, needed, scope)
        except TunesmithError as error:
            return await send_error(error, receive, send)
        scope.setdefault("state", {})[_CALLER] = caller
        await self._app(scope, receive, _with_headers(send, headers) if headers else send)

    async def _find_caller(self, key: str | None) -> Caller:
        # By its hash, so that the time of the look-up reveals nothing of the key. Only valid keys are cached.
        digest = hashlib.sha256((key or "").encode()).digest()
        caller, until = self._accepted.get(digest, (OWNER, 0.0))
        if until > self._clock():
            return caller
        self._accepted.pop(digest, None)
        caller = await self._finding.run(digest, lambda: find_caller(self._settings, self._database, key))
        self._accepted[digest] = caller, self._clock() + CACHE_SECONDS
        return caller


def find_caller(settings: Settings, database: Database, key: str | None) -> Caller:
    """Returns who sends this key. Raises Unauthorized unless it is valid, or none is needed.

    Compares in constant time.
    """
    own = settings.api_key.get_secret_value() if settings.api_key else None
    if own and key and hmac.compare_digest(own.encode(), key.encode()):
        return OWNER
    with database.snapshot() as session:
        found = records.find_valid(session, key) if key else None
        if found is not None and not records.has_expired(found, clock.now(session)):
            return records.caller_of(found)
        if found is None and own is None and not records.any_exist(session):
            return OWNER
    if found is not None:
        raise Unauthorized(
            f"The key {found.name!r} expired at {found.expires_at:%Y-%m-%d %H:%M} UTC.",
            hint="Whoever has a key with the scope admin makes another one.",
        )
    raise Unauthorized(
        "This key is not in force." if key else "",
        hint="Keys are made with `tunesmith keys create NAME`, or set as TUNESMITH_API_KEY.",
    )


def _explain_scopes(caller: Caller, needed: tuple[Scope, ...], scope: RequestScope) -> ScopeMissing:
    return ScopeMissing(
        f"The key {caller.name!r} has {' and '.join(sorted(caller.scopes))}; "
        f"{scope['method']} {scope['path']} needs {' or '.join(needed)}.",
        hint="Whoever has a key with the scope admin gives it more, or makes another one.",
    )


def _with_headers(send: Send, headers: RateHeaders) -> Send:
    added = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return send_with_headers


def is_docs(path: str) -> bool:
    """Whether a path belongs to the page that documents the API."""
    return path == "/docs" or path.startswith(DOCS_ASSETS + "/")


def _is_open(path: str) -> bool:
    # The dashboard's files hold no secret: it requests its data with a key, like every client.
    return path in _OPEN_PATHS or is_docs(path) or is_page(path)


def bearer_key(scope: RequestScope) -> str | None:
    """The key in the request's `Authorization` header, valid or not."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return key.strip() or None if scheme.lower() == "bearer" else None
    return None


async def get_caller(request: Request) -> Caller:
    """Who sent a request. Async, so that it takes no thread of its own."""
    caller: Caller = getattr(request.state, _CALLER, OWNER)
    return caller


CallerDep = Annotated[Caller, Depends(get_caller)]
