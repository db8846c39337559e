"""Around every request: its id, its place in the counters, and an answer where an exception got this far."""

import logging
import time
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.errors import to_response
from app.api.http.idempotency import ARRIVED_AT
from app.api.http.request_metrics import RequestMetrics
from app.core.errors import TunesmithError
from app.core.storage.ids import new_id

_log = logging.getLogger(__name__)


class RequestMiddleware:
    """The outermost layer: `x-request-id` on every answer, and a 500 that says nothing of its cause."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = new_id("req")
        started_at = time.perf_counter()
        scope.setdefault("state", {})[ARRIVED_AT] = datetime.now(UTC)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                seconds = time.perf_counter() - started_at
                self._metrics.observe(scope["method"], _route(scope), message["status"], seconds)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # The boundary of the request: whatever happened, the client gets the one shape.
            _log.exception("Request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if has_started:
                raise  # the server closes the connection: the client must not take this for the end
            await to_response(_internal_error(request_id))(scope, receive, send_with_id)


def _internal_error(request_id: str) -> TunesmithError:
    return TunesmithError(
        "Something went wrong on the server.", hint=f"The server's log has the cause under {request_id}."
    )


def _route(scope: Scope) -> str:
    """The route's template, so that ids do not make a time series each."""
    path: str = getattr(scope.get("route"), "path", "none")
    return path
