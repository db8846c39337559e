"""Refuses a request body over the limit with 413 without reading it whole. Knows no routes but uploads.

The limit holds for a compressed body as it is sent and as it is unpacked.

A JSON body is limited in its parts too: validation makes an error of a kilobyte for each bad one, and holds
the interpreter meanwhile, for long where there are millions.
"""

import json
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.bodies.compression import Unpacked, drop_encoding, find_encoding
from app.api.http.bodies.surrogates import read_form_as_utf8, replace_surrogates
from app.api.http.digits import bounded_int
from app.api.http.errors import BodyRefused, send_error
from app.core.errors import TooLarge
from app.core.errors.bodies import EncodingUnsupported
from app.core.settings import Settings

_UPLOADS = {
    ("POST", "/datasets"),
    ("POST", "/datasets/inspect"),
    ("POST", "/v1/files"),
    ("POST", "/adapters"),
}


# A string without an end reaches to the body's end: searched for, the time would be the square of the length.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
# Objects, lists and fields: a long conversation has thousands.
_MAX_PARTS = 10_000
# The ids of a prompt's tokens; a wrong one is the only error of its list.
_MAX_TOKENS = 1_000_000
_WITH_TOKENS = {"/v1/completions", "/v1/embeddings"}


class BodyTooComplex(BodyRefused):
    """The body, which has been read whole, has too many parts."""


class BodyLimitMiddleware:
    """Checks Content-Length before the body is read, and counts the bytes of a body without one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        read_form_as_utf8(scope)
        if (_content_length(scope) or 0) > self._limit(scope):
            return await send_error(self._too_large(scope), receive, send)
        try:
            counted = self._counted(scope, receive)
            if find_encoding(scope):
                drop_encoding(scope)
                counted = self._counted(scope, Unpacked(counted))
            await self._app(scope, _checked(scope, counted) if _may_be_json(scope) else counted, send)
        except BodyTooComplex as refused:
            await send_error(refused.error, _nothing_more, send)
        except BodyRefused as refused:
            await send_error(refused.error, receive, send)
        except EncodingUnsupported as error:
            await send_error(error, receive, send)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        limit = self._limit(scope)
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise BodyRefused(self._too_large(scope))
            return message

        return receive_counted

    def _limit(self, scope: Scope) -> int:
        return self._settings.max_upload_bytes if _is_upload(scope) else self._settings.max_body_bytes

    def _too_large(self, scope: Scope) -> TooLarge:
        name = "TUNESMITH_MAX_UPLOAD_BYTES" if _is_upload(scope) else "TUNESMITH_MAX_BODY_BYTES"
        return TooLarge(
            f"The request body is larger than {self._limit(scope)} bytes.", hint=f"The limit is {name}."
        )


def _checked(scope: Scope, receive: Receive) -> Receive:
    """Receives a JSON body as one message in UTF-8, once its parts have been counted."""
    is_received = False

    async def receive_checked() -> Message:
        nonlocal is_received
        if is_received:
            return await receive()
        pieces = []
        while (message := await receive())["type"] == "http.request":
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                is_received = True
                body = _utf8(b"".join(pieces))
                _check_parts(scope, body)
                return {"type": "http.request", "body": replace_surrogates(body), "more_body": False}
        return message

    return receive_checked


def _check_parts(scope: Scope, body: bytes) -> None:
    """Raise BodyTooComplex for a JSON body of too many parts."""
    if len(body) <= _MAX_PARTS:
        return
    outside = _STRING.sub(b"", body)
    items = outside.count(b",")
    most = _MAX_TOKENS if scope["path"] in _WITH_TOKENS else _MAX_PARTS
    if items > most or sum(map(outside.count, (b"{", b"[", b":"))) > _MAX_PARTS:
        raise BodyTooComplex(
            TooLarge(
                f"The JSON body has more than {_MAX_PARTS:,} parts.", hint="Send it in several requests."
            )
        )


def _utf8(body: bytes) -> bytes:
    """Returns, as UTF-8, JSON of any encoding that `json.loads` detects; what is not valid stays as it is."""
    encoding = json.detect_encoding(body)
    if encoding.startswith("utf-8"):
        return body
    try:
        return body.decode(encoding, "surrogatepass").encode(errors="surrogatepass")
    except UnicodeDecodeError:
        return body


async def _nothing_more() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _may_be_json(scope: Scope) -> bool:
    """Whether FastAPI parses the body as JSON: it does so for `application/…+json` as well."""
    return not _is_upload(scope) and any(
        re.fullmatch(r"application/(.*\+)?json", _media_type(value), re.DOTALL)
        for name, value in scope["headers"]
        if name == b"content-type"
    )


def is_json(scope: Scope) -> bool:
    """Whether the request says that its body is JSON."""
    return _media_type(dict(scope["headers"]).get(b"content-type", b"")) == "application/json"


def _media_type(content_type: bytes) -> str:
    """Returns the media type without its parameters, read as FastAPI reads it (with `email.message`)."""
    return content_type.decode("latin-1").partition(";")[0].strip().lower()


def _is_upload(scope: Scope) -> bool:
    return (scope["method"], scope["path"]) in _UPLOADS and not is_json(scope)


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return bounded_int(value.decode())
    return None
