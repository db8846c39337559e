"""HTTP routes of the engine for preflights and previews, which run in the background process."""

import logging
from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.base_models.messages import FitRequest
from app.core.engine.messages import Failed
from app.core.engine.preflight import CheckRequest, PreflightRequest, PreviewRequest
from app.core.errors import InvalidRequest, NotFound, QueueFull, TunesmithError, Unavailable
from app.core.errors.base_models import HubUnreachable, ModelMissing
from app.core.errors.engine import EngineFailed
from app.core.errors.jobs import JobFailure
from worker.preflight.background_process import BackgroundProcess
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.fit import estimate_fit
from worker.preflight.preview import run_preview
from worker.preflight.report import check_spec, find_memory_fit, run_preflight
from worker.processes.http_replies import as_json, is_authorized, malformed, unauthorized
from worker.templates.rendering.pool import shared_pool

_log = logging.getLogger(__name__)
_STATUS = {"invalid": 422, "not_found": 404, "unavailable": 503, "internal": 500}
_RETRY_AFTER_SECONDS = 5
_RENDERING_SECONDS = 60

RequestT = TypeVar("RequestT", bound=BaseModel)
Work = Callable[[RequestT, PreflightEnvironment], BaseModel]


class PreflightService:
    """The routes, for a job that has the device alone and for one that shares it with serving."""

    def __init__(
        self,
        find_environment: Callable[[], PreflightEnvironment],
        find_environment_coexisting: Callable[[], PreflightEnvironment],
        token: str,
        process: BackgroundProcess,
    ) -> None:
        self._find_environment = find_environment
        self._find_environment_coexisting = find_environment_coexisting
        self._token = token
        self._process = process

    def routes(self) -> list[Route]:
        """The routes for the engine's application."""
        return [
            Route("/preflight", self._preflight, methods=["POST"]),
            Route("/preview", self._preview, methods=["POST"]),
            Route("/check", self._check, methods=["POST"]),
            Route("/fit", self._fit, methods=["POST"]),
            Route("/room", self._memory_fit, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the background process."""
        self._process.close()

    async def _preflight(self, request: Request) -> Response:
        return await self._answer(request, PreflightRequest, run_preflight, self._find_environment)

    async def _check(self, request: Request) -> Response:
        return await self._answer(request, CheckRequest, check_spec, self._find_environment)

    async def _fit(self, request: Request) -> Response:
        return await self._answer(request, FitRequest, estimate_fit, self._find_environment)

    async def _preview(self, request: Request) -> Response:
        return await self._answer(request, PreviewRequest, run_preview, self._find_environment)

    async def _memory_fit(self, request: Request) -> Response:
        return await self._answer(
            request, PreflightRequest, find_memory_fit, self._find_environment_coexisting
        )

    async def _answer(
        self,
        request: Request,
        kind: type[RequestT],
        work: Work[RequestT],
        find_environment: Callable[[], PreflightEnvironment],
    ) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        try:
            parsed = kind.model_validate_json(await request.body())
        except ValidationError as error:
            return malformed(error)
        environment = await anyio.to_thread.run_sync(find_environment)
        try:
            result = await self._process.run(run_safely, work, parsed, environment)
        except TunesmithError as error:
            result = failed(error)
        status = _STATUS[result.kind] if isinstance(result, Failed) else 200
        return as_json(result, status)


def run_safely(work: Work[RequestT], request: RequestT, environment: PreflightEnvironment) -> BaseModel:
    """In the background process: run the work and return its result or its failure.

    An exception would lose its hint on the way to the engine's process.
    """
    try:
        with shared_pool().limit_total(_RENDERING_SECONDS):
            return work(request, environment)
    except TunesmithError as error:
        return failed(error)
    except MemoryError:
        return failed(EngineFailed("The process that reads datasets has no memory left.", hint="Try again."))
    except BaseException:  # the boundary of the process: no library may end it, and the log has the traceback
        _log.exception("A preflight or preview failed")
        return Failed(
            kind="internal",
            code="preflight_error",
            message="The worker failed while it was looking at the job.",
            hint="The worker's engine log has the details.",
        )


def failed(error: TunesmithError) -> Failed:
    """The error as a response. Errors that a job would fail with count as invalid requests."""
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
            "param": error.param,
            "hint": error.hint,
            "retry_after_seconds": _RETRY_AFTER_SECONDS if kind == "unavailable" else None,
        }
    )
