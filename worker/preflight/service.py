"""HTTP routes of the engine for preflights and previews, which run in the background process.

The work is named and not imported: the engine's start would wait for its libraries (datasets, pandas, TRL).
"""

import logging
import pkgutil
from collections.abc import Callable

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
from worker.processes.http_replies import as_json, is_authorized, malformed, unauthorized
from worker.templates.rendering.pool import shared_pool

_log = logging.getLogger(__name__)
_STATUS = {"invalid": 422, "not_found": 404, "unavailable": 503, "internal": 500}
_RETRY_AFTER_SECONDS = 5
_RENDERING_SECONDS = 60
# Where every row of a dataset is rendered.
_RENDERING_ALL_SECONDS = 600

# Functions of a request and an environment, as `module:function`.
RUN_PREFLIGHT = "worker.preflight.report:run_preflight"
CHECK_SPEC = "worker.preflight.report:check_spec"
FIND_MEMORY_FIT = "worker.preflight.report:find_memory_fit"
ESTIMATE_FIT = "worker.preflight.fit:estimate_fit"
RUN_PREVIEW = "worker.preflight.preview:run_preview"
FIND_HELD_OUT = "worker.preflight.held_out:find_held_out"


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
            Route("/held_out", self._held_out, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the background process."""
        self._process.close()

    async def _preflight(self, request: Request) -> Response:
        return await self._answer(request, PreflightRequest, RUN_PREFLIGHT, self._find_environment)

    async def _check(self, request: Request) -> Response:
        return await self._answer(request, CheckRequest, CHECK_SPEC, self._find_environment)

    async def _fit(self, request: Request) -> Response:
        return await self._answer(request, FitRequest, ESTIMATE_FIT, self._find_environment)

    async def _preview(self, request: Request) -> Response:
        return await self._answer(request, PreviewRequest, RUN_PREVIEW, self._find_environment)

    async def _memory_fit(self, request: Request) -> Response:
        return await self._answer(
            request, PreflightRequest, FIND_MEMORY_FIT, self._find_environment_coexisting
        )

    async def _held_out(self, request: Request) -> Response:
        return await self._answer(
            request,
            PreflightRequest,
            FIND_HELD_OUT,
            self._find_environment,
            rendering_seconds=_RENDERING_ALL_SECONDS,
        )

    async def _answer(
        self,
        request: Request,
        kind: type[BaseModel],
        work: str,
        find_environment: Callable[[], PreflightEnvironment],
        *,
        rendering_seconds: float = _RENDERING_SECONDS,
    ) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        try:
            parsed = kind.model_validate_json(await request.body())
        except ValidationError as error:
            return malformed(error)
        environment = await anyio.to_thread.run_sync(find_environment)
        try:
            result = await self._process.run(run_safely, work, parsed, environment, rendering_seconds)
        except TunesmithError as error:
            result = failed(error)
        status = _STATUS[result.kind] if isinstance(result, Failed) else 200
        return as_json(result, status)


def run_safely(
    work: str,
    request: BaseModel,
    environment: PreflightEnvironment,
    rendering_seconds: float = _RENDERING_SECONDS,
) -> BaseModel:
    """In the background process: run the work of this name and return its result or its failure.

    An exception would lose its hint on the way to the engine's process.
    """
    try:
        with shared_pool().limit_total(rendering_seconds):
            found: BaseModel = pkgutil.resolve_name(work)(request, environment)
            return found
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
