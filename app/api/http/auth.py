"""Authentication: once a key exists, every request needs one. Runs before any of the body is read."""

import hashlib
import hmac
import time
from collections.abc import Callable

from anyio import to_thread
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.errors import send_error
from app.core.errors.access import Unauthorized
from app.core.settings import Settings
from app.core.storage import keys
from app.core.storage.database import Database
from app.dashboard.pages import is_page

DOCS_ASSETS = "/docs/assets"
CACHE_SECONDS = 1.0
_OPEN_PATHS = {"/health", "/ready", "/openapi.json"}

# Declares the scheme in the OpenAPI document; AuthMiddleware checks the key.
bearer = HTTPBearer(
    auto_error=False,
    description="`Authorization: Bearer <key>`. Needed once TUNESMITH_API_KEY is set or a key was made with "
    "`tunesmith keys create`.",
)


class AuthMiddleware:
    """Responds 401 to a request without a valid key, unless no key exists.

    A key that was accepted is accepted for another second without a look at the database.
    """

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
        self._accepted_until: dict[bytes, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            try:
                await self._check_cached(bearer_key(scope))
            except Unauthorized as error:
                return await send_error(error, receive, send)
        await self._app(scope, receive, send)

    async def _check_cached(self, key: str | None) -> None:
        # By its hash, so that the time of the look-up reveals nothing of the key. Only valid keys are cached.
        digest = hashlib.sha256((key or "").encode()).digest()
        if self._accepted_until.get(digest, 0.0) > self._clock():
            return
        self._accepted_until.pop(digest, None)
        await to_thread.run_sync(check, self._settings, self._database, key)
        self._accepted_until[digest] = self._clock() + CACHE_SECONDS


def check(settings: Settings, database: Database, key: str | None) -> None:
    """Raise Unauthorized unless this key is valid or none is needed. Compares in constant time."""
    own = settings.api_key.get_secret_value() if settings.api_key else None
    if own and key and hmac.compare_digest(own.encode(), key.encode()):
        return
    with database.snapshot() as session:
        if key and keys.is_valid(session, key):
            return
        if own is None and not keys.any_exist(session):
            return
    raise Unauthorized(
        "This key is not in force." if key else "",
        hint="Keys are made with `tunesmith keys create NAME`, or set as TUNESMITH_API_KEY.",
    )


def is_docs(path: str) -> bool:
    """Whether a path belongs to the page that documents the API."""
    return path == "/docs" or path.startswith(DOCS_ASSETS + "/")


def _is_open(path: str) -> bool:
    # The dashboard's files hold no secret: it requests its data with a key, like every client.
    return path in _OPEN_PATHS or is_docs(path) or is_page(path)


def bearer_key(scope: Scope) -> str | None:
    """The key in the request's `Authorization` header, valid or not."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return key.strip() or None if scheme.lower() == "bearer" else None
    return None
