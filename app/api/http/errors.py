"""Turns errors into HTTP responses of one format: {"error": {"type", "code", "message", "param", "hint"}}."""

import json
from collections.abc import Mapping
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Send

from app.api.http.bodies.validation import describe
from app.api.schemas import ErrorResponse
from app.core.engine.messages import Failed
from app.core.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    QueueFull,
    TooLarge,
    TunesmithError,
    Unavailable,
)
from app.core.errors.access import Forbidden, RateLimited, TokensSpent, Unauthorized
from app.core.errors.bodies import EncodingUnsupported
from app.core.errors.connections import TooManyConnections
from app.core.errors.datasets import DatasetInvalid, FieldsUnused
from app.core.errors.storage import StorageFull
from app.core.errors.work import LeaseLost
from app.core.storage.disk import is_disk_full_error

_STATUS: dict[type[TunesmithError], int] = {
    InvalidRequest: 422,
    EncodingUnsupported: 415,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    LeaseLost: 409,
    PreconditionFailed: 412,
    TooLarge: 413,
    QueueFull: 429,
    RateLimited: 429,
    TooManyConnections: 503,
    Unavailable: 503,
    StorageFull: 507,
}
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DESCRIPTIONS = {
    401: "No key, or a wrong one.",
    403: "The key lacks the scope; or a page of another origin asked, or a name that is not this machine's.",
    404: "There is no such thing.",
    409: "The present state does not allow this.",
    412: "It was changed since the version that `If-Match` names.",
    413: "The body is larger than the limit.",
    416: "The range begins behind the end.",
    422: "The request is malformed; `param` names the field.",
    429: "Too many are waiting, or a limit of the key is reached; `Retry-After` says when to come back.",
    503: "Nothing can answer now; `Retry-After` says when to come back.",
    507: "The disk is full; `hint` says what to free.",
}
_QUEUE_FULL_RETRY_SECONDS = 30
_FAILED_KINDS: dict[str, type[TunesmithError]] = {
    "invalid": InvalidRequest,
    "not_found": NotFound,
    "busy": QueueFull,
    "unavailable": Unavailable,
    "internal": TunesmithError,
}
_MAY_RETRY = (Unavailable, QueueFull)
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 8 << 20


class EngineRefusal(Exception):
    """The engine refused a request or ended its answer early; `failed` is its reason."""

    def __init__(self, failed: Failed) -> None:
        self.failed = failed
        super().__init__(failed.message)


class BodyRefused(HTTPException):
    """The body went over a limit while it was read, or can't be unpacked.

    FastAPI lets no other kind of exception than HTTPException through there. `error` is what to send.
    """

    def __init__(self, error: TunesmithError) -> None:
        self.error = error
        super().__init__(400)


def install(app: FastAPI) -> None:
    """Add the exception handlers, so that every error becomes a response of the common format."""

    @app.exception_handler(TunesmithError)
    async def _tunesmith_error(_request: Request, error: TunesmithError) -> Response:
        return to_response(error)

    @app.exception_handler(EngineRefusal)
    async def _engine_refusal(_request: Request, refusal: EngineRefusal) -> Response:
        return refusal_response(refusal.failed)

    @app.exception_handler(RequestValidationError)
    async def _validation_error(request: Request, error: RequestValidationError) -> Response:
        model = _body_model(request)
        return to_response(describe(list(error.errors()), body=error.body, model=model))

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error, BodyRefused):
            raise error  # BodyLimitMiddleware sends it: it can also close the connection
        return _http_response(request, error)


def to_response(error: TunesmithError) -> Response:
    """The HTTP response for an error."""
    status = next((_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS), 500)
    return _response(status, error_content(error), _headers(error))


def refusal_response(failed: Failed) -> Response:
    """The HTTP response for a refusal of the engine."""
    kind = _FAILED_KINDS[failed.kind]
    headers = {"retry-after": str(failed.retry_after_seconds or 5)} if kind in _MAY_RETRY else {}
    return _response(_STATUS.get(kind, 500), refusal_content(failed), headers)


def error_content(error: TunesmithError) -> dict[str, Any]:
    """An error in the common format."""
    content = _content(error.type, error.code, error.message, error.param, error.hint)
    if isinstance(error, DatasetInvalid):
        content["error"]["problems"] = error.problems
        if error.sample:
            content["error"]["sample"] = error.sample
    if isinstance(error, FieldsUnused):
        content["error"]["unused_fields"] = error.unused_fields
    return content


def refusal_content(failed: Failed) -> dict[str, Any]:
    """The engine's reason in the common format, with the engine's own code."""
    return _content(_FAILED_KINDS[failed.kind].type, failed.code, failed.message, failed.param, failed.hint)


def dumps(content: object) -> str:
    """JSON that any client can read: an unpaired surrogate, which UTF-8 can't hold, becomes `?`."""
    return _encoder.encode(content).encode(errors="replace").decode()


def rate_headers(kind: str, limit: int, left: int, seconds: float) -> dict[str, str]:
    """The headers in which OpenAI's API tells a limit: how much is left, and when there is more again."""
    values = {"limit": str(limit), "remaining": str(left), "reset": f"{max(0, round(seconds))}s"}
    return {f"x-ratelimit-{name}-{kind}": value for name, value in values.items()}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route: the error statuses that it may return, with their format."""
    return {status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]} for status in statuses}


async def send_error(error: TunesmithError, receive: Receive, send: Send) -> None:
    """Send an error before the body was read, and close the connection.

    A part of the body is read first: a socket closed with unread bytes is reset, and the reset may overtake
    the response.
    """
    response = to_response(error)
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    drained = 0
    with anyio.move_on_after(_DRAIN_SECONDS):
        while drained < _DRAIN_BYTES:
            message = await receive()
            drained += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
    await send({"type": "http.response.body", "body": b""})


def _http_response(request: Request, error: HTTPException) -> Response:
    method, path = request.method, request.url.path
    match error.status_code:
        case 404:
            return to_response(NotFound(f"There is no route {method} {path}.", hint="GET /docs lists them."))
        case 405:
            allowed = _allowed_methods(request)
            message = f"{method} is not possible on {path}."
            content = _content(
                "invalid_request_error", "method_not_allowed", message, None, f"Allowed: {allowed}."
            )
            return _response(405, content, {"allow": allowed})
        case 400 if is_disk_full_error(error):
            # FastAPI says no more than that the form can't be parsed. Its files go to the temporary folder.
            return to_response(StorageFull())
        case 400:
            return to_response(InvalidRequest(f"The body can't be read: {error.detail}."))
    content = _content("invalid_request_error", "http_error", str(error.detail), None, None)
    return _response(error.status_code, content, error.headers or {})


def _content(type_: str, code: str, message: str, param: str | None, hint: str | None) -> dict[str, Any]:
    return {"error": {"type": type_, "code": code, "message": message, "param": param, "hint": hint}}


def _response(status: int, content: dict[str, Any], headers: Mapping[str, str]) -> Response:
    return Response(dumps(content), status, dict(headers), media_type="application/json")


def _headers(error: TunesmithError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, RateLimited):
        return _limit_headers(error)
    if isinstance(error, Unavailable):
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, QueueFull):
        return {"retry-after": str(_QUEUE_FULL_RETRY_SECONDS)}
    return {}


def _limit_headers(error: RateLimited) -> dict[str, str]:
    headers = {"retry-after": str(error.retry_after_seconds)}
    if error.limit is not None:
        headers |= rate_headers(error.counted, error.limit, 0, error.retry_after_seconds)
    if isinstance(error, TokensSpent):
        # Clients retry a 429 by themselves, and this one lasts until midnight.
        headers["x-should-retry"] = "false"
    return headers


def _allowed_methods(request: Request) -> str:
    """The methods of every route with this path; Starlette names those of the first one alone."""
    scopes = [{**request.scope, "method": method} for method in ("DELETE", "GET", "PATCH", "POST", "PUT")]
    routes = request.app.routes
    found = [
        scope["method"] for scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]
    return ", ".join("GET, HEAD" if method == "GET" else method for method in found)


def _body_model(request: Request) -> type[BaseModel] | None:
    """The class of the JSON body that the matched route takes."""
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = getattr(getattr(field, "field_info", None), "annotation", None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
