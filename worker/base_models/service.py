"""HTTP routes of the engine: search on the Hub, and deletion from its cache. Knows no torch."""

import logging
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.base_models.messages import HubSearch, HubSearchRequest, Removed, RemoveRequest
from app.core.base_models.needs import check_unneeded
from app.core.engine.messages import Failed
from app.core.engine.state import EngineState
from app.core.errors.base_models import ModelInUse
from worker.base_models.hub_search import search
from worker.models.files import hub_cache
from worker.processes.http_replies import as_json, is_authorized, malformed, unauthorized

_SEARCH_SECONDS = 15.0
_log = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=BaseModel)


class BaseModelService:
    """The routes. `on_change` is called where the cache has changed."""

    def __init__(
        self, find_state: Callable[[], EngineState], token: str, on_change: Callable[[], None]
    ) -> None:
        self._find_state = find_state
        self._token = token
        self._on_change = on_change

    def routes(self) -> list[Route]:
        """The routes for the engine's application."""
        return [
            Route("/hub/search", self._search, methods=["POST"]),
            Route("/base-models/remove", self._remove, methods=["POST"]),
        ]

    async def _search(self, request: Request) -> Response:
        parsed = await self._parse(request, HubSearchRequest)
        if isinstance(parsed, Response):
            return parsed
        found = HubSearch(state="unreachable", message=f"The Hub did not answer in {_SEARCH_SECONDS:.0f} s.")
        with anyio.move_on_after(_SEARCH_SECONDS):
            found = await anyio.to_thread.run_sync(search, parsed, abandon_on_cancel=True)
        return as_json(found)

    async def _remove(self, request: Request) -> Response:
        parsed = await self._parse(request, RemoveRequest)
        if isinstance(parsed, Response):
            return parsed
        try:
            # As the engine knows it now, and not as of the worker's last heartbeat.
            check_unneeded(parsed.base_model, None, [self._find_state()])
            size = await anyio.to_thread.run_sync(hub_cache.remove, parsed.base_model)
        except ModelInUse as error:
            return as_json(Failed(kind="busy", code=error.code, message=error.message, hint=error.hint), 409)
        except OSError as error:
            _log.exception("%s could not be deleted", parsed.base_model)
            message = f"The files of {parsed.base_model} can't be deleted: {error.strerror}."
            hint = "The worker needs the right to write to the Hub's cache (HF_HOME)."
            return as_json(Failed(kind="internal", code="model_not_deleted", message=message, hint=hint), 500)
        self._on_change()
        return as_json(Removed(size_bytes=size))

    async def _parse(self, request: Request, kind: type[RequestT]) -> RequestT | Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        try:
            return kind.model_validate_json(await request.body())
        except ValidationError as error:
            return malformed(error)
