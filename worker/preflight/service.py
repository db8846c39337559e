"""Preflight and preview over HTTP, beside the engine's own routes: the work is done in the side process."""

import logging
from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.engine.messages import Failed
from app.core.engine.preflight import PreflightRequest, PreviewRequest
from app.core.errors import InvalidRequest, NotFound, QueueFull, TunesmithError, Unavailable
from app.core.errors.base_models import HubUnreachable, ModelMissing
from app.core.errors.jobs import JobFailure
from worker.preflight.place import Place
from worker.preflight.pool import SideProcess
from worker.preflight.preview import run_preview
from worker.preflight.report import find_room, run_preflight
from worker.processes.http_replies import as_json, is_authorized, malformed, unauthorized

_log = logging.getLogger(__name__)
_STATUS = {"invalid": 422, "not_found": 404, "unavailable": 503, "internal": 500}
_RETRY_AFTER_SECONDS = 5

Asked = TypeVar("Asked", bound=BaseModel)
Work = Callable[[Asked, Place], BaseModel]


class PreflightService:
    """The routes. They say what the worker has at this moment, for a job alone and for one beside serving."""

    def __init__(
        self, find_place: Callable[[], Place], find_place_beside: Callable[[], Place], token: str
    ) -> None:
        self._find_place = find_place
        self._find_place_beside = find_place_beside
        self._token = token
        self._side = SideProcess()

    def routes(self) -> list[Route]:
        """For the engine's application."""
        return [
            Route("/preflight", self._preflight, methods=["POST"]),
            Route("/preview", self._preview, methods=["POST"]),
            Route("/room", self._room, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the side process."""
        self._side.close()

    async def _preflight(self, request: Request) -> Response:
        return await self._answer(request, PreflightRequest, run_preflight, self._find_place)

    async def _preview(self, request: Request) -> Response:
        return await self._answer(request, PreviewRequest, run_preview, self._find_place)

    async def _room(self, request: Request) -> Response:
        return await self._answer(request, PreflightRequest, find_room, self._find_place_beside)

    async def _answer(
        self, request: Request, kind: type[Asked], work: Work[Asked], find_place: Callable[[], Place]
    ) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        try:
            asked = kind.model_validate_json(await request.body())
        except ValidationError as error:
            return malformed(error)
        place = await anyio.to_thread.run_sync(find_place)
        try:
            answer = await self._side.run(run_safely, work, asked, place)
        except TunesmithError as error:
            answer = failed(error)
        status = _STATUS[answer.kind] if isinstance(answer, Failed) else 200
        return as_json(answer, status)


def run_safely(work: Work[Asked], asked: Asked, place: Place) -> BaseModel:
    """In the side process: what the work answers, or why it does not. An exception would lose its hint."""
    try:
        return work(asked, place)
    except TunesmithError as error:
        return failed(error)
    except Exception:  # the boundary of the process: the traceback must be in the log
        _log.exception("A preflight or preview failed")
        return Failed(
            kind="internal",
            code="preflight_error",
            message="The worker failed while it was looking at the job.",
            hint="The worker's engine log has the details.",
        )


def failed(error: TunesmithError) -> Failed:
    """The error as an answer. What a job would fail with is the request's fault here."""
    kind = "internal"
    if isinstance(error, Unavailable | QueueFull | HubUnreachable):
        kind = "unavailable"
    elif isinstance(error, NotFound | ModelMissing):
        kind = "not_found"
    elif isinstance(error, InvalidRequest | JobFailure):
        kind = "invalid"
    return Failed.model_validate(
        {
            "kind": kind,
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "retry_after_seconds": _RETRY_AFTER_SECONDS if kind == "unavailable" else None,
        }
    )
