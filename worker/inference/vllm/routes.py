"""The route by which the worker has adapters unloaded that are deleted."""

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.errors.engine import EngineFailed, VllmUnreachable
from worker.inference.failures import failed
from worker.inference.vllm.engine import VllmEngine
from worker.processes.http_replies import as_json, is_authorized, malformed, unauthorized


class UnloadRequest(BaseModel):
    """Ids of adapters that are deleted."""

    model_config = ConfigDict(extra="forbid")
    adapter_ids: list[str]


def unloading_routes(engine: VllmEngine, token: str) -> list[Route]:
    """Returns the route for the engine's application."""

    async def unload(request: Request) -> Response:
        if not is_authorized(request, token):
            return unauthorized()
        try:
            adapter_ids = UnloadRequest.model_validate_json(await request.body()).adapter_ids
        except ValidationError as error:
            return malformed(error)
        try:
            await engine.unload(adapter_ids)
        except (VllmUnreachable, EngineFailed) as error:
            return as_json(failed(error), status=503)
        return as_json(engine.state)

    return [Route("/adapters/unload", unload, methods=["POST"])]
