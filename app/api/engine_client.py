"""Finds a live engine in the workers table and streams an answer from it. Knows nothing of our clients."""

import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from app.core import workers
from app.core.errors import EngineFailed, NoEngine
from app.core.messages import EngineState, Failed, GenerateRequest, Reply, reply_adapter
from app.core.settings import Settings

AnswerT = TypeVar("AnswerT", bound=BaseModel)

_CONNECT_SECONDS = 5.0
# An engine that loads a model is silent for minutes, so reading has no limit; TCP notices a dead machine.
_KEEPALIVE_SECONDS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Engine:
    """Where a live engine is, and what it serves."""

    url: str
    token: str
    state: EngineState


def find_engine(session: Session, settings: Settings, *, base_model: str) -> Engine:
    """A live engine; one that has the base model loaded, where there is one. Raises NoEngine."""
    alive = workers.find_alive(session, lease_seconds=settings.lease_seconds, role="serve")
    engines = [
        Engine(
            worker.engine_url,
            worker.engine_token or "",
            EngineState.model_validate(worker.engine_state or {}),
        )
        for worker in alive
        if worker.engine_url
    ]
    if not engines:
        raise NoEngine(
            "No engine is running: a worker that serves is still starting, or there is none.",
            hint="GET /ready shows the workers; `python -m worker` starts one.",
        )
    return min(engines, key=lambda engine: _preference(engine, base_model))


class EngineClient:
    """One connection pool for all engines."""

    def __init__(self) -> None:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        for name, value in _KEEPALIVE_SECONDS.items():
            if hasattr(socket, name):
                options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=options),
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            trust_env=False,  # a proxy for the internet has no business between us and the engine
        )

    async def stream(self, engine: Engine, request: GenerateRequest) -> AsyncGenerator[Reply, None]:
        """The engine's replies, the last one Finished or Failed. Closing the iterator cancels the work.

        Raises EngineFailed when the engine can't be reached, is not understood, or stops half-way.
        """
        call = self._http.stream("POST", f"{engine.url}/generate", **_content(engine, request))
        with _engine_errors():
            async with call as response:
                async for line in response.aiter_lines():
                    with _understanding(response):
                        reply = reply_adapter.validate_json(line)
                    yield reply
                    if reply.type != "delta":
                        return
        raise EngineFailed("The engine stopped while it was answering.", hint="Try again.")

    async def ask(
        self, engine: Engine, path: str, request: BaseModel, answer: type[AnswerT]
    ) -> AnswerT | Failed:
        """One answer to one request, or why there is none. Raises EngineFailed as `stream` does."""
        with _engine_errors():
            response = await self._http.post(f"{engine.url}{path}", **_content(engine, request))
        kind = answer if response.status_code == httpx.codes.OK else Failed
        with _understanding(response):
            return kind.model_validate_json(response.content)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


def _content(engine: Engine, request: BaseModel) -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {engine.token}"}
    return {"content": request.model_dump_json(), "headers": headers}


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as error:
        raise EngineFailed("The engine can't be reached.", hint="GET /ready shows the workers.") from error
    except httpx.TransportError as error:
        raise EngineFailed("The engine stopped while it was answering.", hint="Try again.") from error


@contextmanager
def _understanding(response: httpx.Response) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise EngineFailed(f"The engine's answer (HTTP {response.status_code}) is not understood.") from error


def _preference(engine: Engine, base_model: str) -> tuple[bool, bool]:
    """Sorts engines: a paused one last, one without the base model after one that has it."""
    loaded = engine.state.base_model
    return engine.state.paused_by is not None, loaded is None or loaded.name != base_model
