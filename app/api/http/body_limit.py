"""Refuses a request body over the limit with 413 without reading it whole. Knows no routes but uploads."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.digits import bounded_int
from app.api.http.errors import BodyTooLarge, send_error
from app.core.errors import TooLarge
from app.core.settings import Settings

_UPLOADS = {("POST", "/datasets"), ("POST", "/v1/files"), ("POST", "/adapters")}


class BodyLimitMiddleware:
    """Checks Content-Length before the body is read, and counts the bytes of a body without one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if (_content_length(scope) or 0) > self._limit(scope):
            return await send_error(self._too_large(scope), receive, send)
        try:
            await self._app(scope, self._counted(scope, receive), send)
        except BodyTooLarge:
            await send_error(self._too_large(scope), receive, send)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        limit = self._limit(scope)
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise BodyTooLarge
            return message

        return receive_counted

    def _limit(self, scope: Scope) -> int:
        return self._settings.max_upload_bytes if _is_upload(scope) else self._settings.max_body_bytes

    def _too_large(self, scope: Scope) -> TooLarge:
        name = "TUNESMITH_MAX_UPLOAD_BYTES" if _is_upload(scope) else "TUNESMITH_MAX_BODY_BYTES"
        return TooLarge(
            f"The request body is larger than {self._limit(scope)} bytes.", hint=f"The limit is {name}."
        )


def is_json(scope: Scope) -> bool:
    """Whether the request says that its body is JSON."""
    headers = dict(scope["headers"])
    media_type: bytes = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    return media_type == b"application/json"


def _is_upload(scope: Scope) -> bool:
    return (scope["method"], scope["path"]) in _UPLOADS and not is_json(scope)


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return bounded_int(value.decode())
    return None
