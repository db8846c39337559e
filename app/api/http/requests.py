"""Counts every request, gives it an id, and turns an unhandled exception into a 500."""

import logging
import time
from datetime import UTC, datetime

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.errors import to_response
from app.api.http.idempotency import ARRIVED_AT
from app.api.http.request_metrics import RequestMetrics
from app.core.errors import TunesmithError
from app.core.errors.storage import DatabaseUnavailable, StorageFull
from app.core.storage.disk import is_disk_full_error
from app.core.storage.ids import new_id
from app.core.storage.outages import is_unavailable, log_unless_away

_log = logging.getLogger(__name__)


class CounterMiddleware:
    """Counts every request by its route and the status that was sent."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started_at = time.perf_counter()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - started_at
                self._metrics.observe(scope["method"], _route(scope), message["status"], seconds)
            await send(message)

        await self._app(scope, receive, send_counted)


class RequestMiddleware:
    """Adds `x-request-id` to every response. A 500 names this id, not the cause, which is logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = new_id("req")
        scope.setdefault("state", {})[ARRIVED_AT] = datetime.now(UTC)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            # The boundary of the request: the client gets the common error format.
            if is_disk_full_error(error) and not has_started:
                _log.error("Request %s failed: the disk is full: %s", request_id, error)
                return await to_response(StorageFull())(scope, receive, send_with_id)
            if is_unavailable(error) and not has_started:
                return await to_response(DatabaseUnavailable())(scope, receive, send_with_id)
            what = f"Request {request_id} failed: {scope['method']} {scope['path']}"
            log_unless_away(_log, what, error)
            if has_started:
                raise  # the server closes the connection, so that the client sees an incomplete response
            await to_response(_internal_error(request_id))(scope, receive, send_with_id)


def _internal_error(request_id: str) -> TunesmithError:
    return TunesmithError(
        "Something went wrong on the server.", hint=f"The server's log has the cause under {request_id}."
    )


def _route(scope: Scope) -> str:
    """The route's template: a label with ids in it would make a time series for each id."""
    route = scope.get("route")
    if not isinstance(route, Route):
        return "none"
    # The route does not know the prefix under which its router was included, as `/v1`.
    path = scope["path"]
    starts = [index for index, character in enumerate(path) if character == "/"]
    return next((path[:start] for start in starts if route.path_regex.match(path[start:])), "") + route.path
