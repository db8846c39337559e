"""Turns every error of a path under /v1 into OpenAI's format.

A middleware translates the response that is about to be sent, so that it covers errors of every origin: the
routes, the framework, authentication, the body limit. Native paths are not changed.
"""

import json
from typing import Any

from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.errors import dumps

PREFIX = "/v1/"
_MALFORMED = 422
# Native paths return 422 for any malformed request; OpenAI returns 400, and 422 only for these codes.
_KEEP_422 = {"idempotency_key_reused"}
_STATUS = {"model_not_allowed": 403, "model_unknown": 404, "model_gated": 403}
_CODES = {"dataset_not_found": "file_not_found", "dataset_in_use": "file_in_use"}
_MODEL_NOT_FOUND = {"model_unknown", "adapter_not_found", "model_missing"}
# OpenAI's clients retry these statuses by themselves, although only another request can succeed.
_NO_RETRY = {409}


class OpenAIErrorBody(BaseModel):
    """What went wrong."""

    message: str = Field(description="What happened and what to do next, for a person.")
    type: str = Field(description="The kind of error.", examples=["invalid_request_error"])
    param: str | None = Field(description="The parameter it is about.", examples=["model"])
    code: str | None = Field(description="A stable word for programs.", examples=["model_not_found"])


class OpenAIError(BaseModel):
    """The one shape of every error under /v1."""

    error: OpenAIErrorBody = Field(description="What went wrong.")


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "The request can't be answered; `code` says why."},
    "5XX": {"model": OpenAIError, "description": "Nothing can answer now; see `Retry-After`."},
}


class OpenAIErrors:
    """Translates the errors of all paths under /v1."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(PREFIX):
            return await self._app(scope, receive, send)
        await self._app(scope, receive, _Translator(send))


class _Translator:
    """Holds the start of an error response back until its body arrives, which comes in one message."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_error(message):
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            message["body"] = _translate(start, message["body"])
            await self._send(start)
        await self._send(message)


def openai_error(content: dict[str, Any]) -> dict[str, Any]:
    """A native error in OpenAI's format; the hint becomes part of the message."""
    error = content["error"]
    code, param = _CODES.get(error["code"], error["code"]), error["param"]
    if code in _MODEL_NOT_FOUND:
        code, param = "model_not_found", "model"
    message = " ".join(text for text in (error["message"], error["hint"]) if text)
    return {"error": {"message": message, "type": error["type"], "param": param, "code": code}}


def _translate(start: Message, body: bytes) -> bytes:
    """The body in OpenAI's format; sets the status and headers of `start`."""
    native = json.loads(body)
    code = native["error"]["code"]
    status = _STATUS.get(code, start["status"])
    if status == _MALFORMED and code not in _KEEP_422:
        status = 400
    translated = dumps(openai_error(native)).encode()
    start["status"] = status
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-length"] = str(len(translated))
    if status in _NO_RETRY:
        headers["x-should-retry"] = "false"
    start["headers"] = headers.raw
    return translated


def _is_error(start: Message) -> bool:
    headers = MutableHeaders(raw=list(start.get("headers", [])))
    return start["status"] >= 400 and headers.get("content-type", "").startswith("application/json")
