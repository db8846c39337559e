"""Responses that all routes of the engine process share: JSON, 401 without a token, 422 for a bad body."""

import hmac

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.core.engine.messages import Failed
from app.core.errors import InvalidRequest


def is_authorized(request: Request, token: str) -> bool:
    """Whether the request carries the engine's token."""
    sent = request.headers.get("authorization", "")
    return hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())


def as_json(content: BaseModel, status: int = 200) -> Response:
    """The content as a JSON response."""
    return Response(content.model_dump_json(), status_code=status, media_type="application/json")


def unauthorized() -> Response:
    """The response to a request without the token."""
    refusal = Failed(kind="invalid", code="unauthorized", message="The engine's token is missing or wrong.")
    return as_json(refusal, status=401)


def malformed(error: ValidationError) -> Response:
    """The response to a malformed body."""
    where = ", ".join(".".join(map(str, one["loc"])) or "body" for one in error.errors())
    message = f"The request is malformed: {where}."
    return as_json(Failed(kind="invalid", code=InvalidRequest.code, message=message), status=422)
