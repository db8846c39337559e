"""Finds a live engine in the workers table and streams an answer from it. Knows nothing of our clients.

A worker that was killed stands in the table for one more lease, and its engine's port may be another
process's by then. So an address where nobody answers, or nobody who knows the engine's token and language, is
passed over for the next engine.
"""

import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
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
    others: tuple["Engine", ...] = ()  # to ask where this one turns out to be gone, the best first


def find_engine(session: Session, settings: Settings, *, base_model: str) -> Engine:
    """A live engine, and the others; one that has the base model loaded comes first. Raises NoEngine."""
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
    best, *others = sorted(engines, key=lambda engine: _preference(engine, base_model))
    return replace(best, others=tuple(others))


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
        for candidate, is_last in _in_turn(engine):
            has_begun = False
            try:
                async with aclosing(self._stream_from(candidate, request)) as replies:
                    async for reply in replies:
                        has_begun = True
                        yield reply
                return
            except _NotThere:
                if is_last or has_begun:
                    raise

    async def ask(
        self, engine: Engine, path: str, request: BaseModel, answer: type[AnswerT]
    ) -> AnswerT | Failed:
        """One answer to one request, or why there is none. Raises EngineFailed as `stream` does."""
        for candidate, is_last in _in_turn(engine):
            try:
                with _engine_errors():
                    response = await self._http.post(f"{candidate.url}{path}", **_content(candidate, request))
                kind = answer if response.status_code == httpx.codes.OK else Failed
                with _understanding(response):
                    return kind.model_validate_json(response.content)
            except _NotThere:
                if is_last:
                    raise
        raise AssertionError("the last one answers or raises")

    async def is_there(self, url: str, token: str | None) -> bool:
        """Whether the engine of a worker's row answers, and no other process at its address."""
        headers = {"authorization": f"Bearer {token or ''}"}
        try:
            response = await self._http.get(f"{url}/state", headers=headers, timeout=_CONNECT_SECONDS)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return False
        except httpx.TransportError:
            return True  # busy beyond measure, perhaps; a request will tell
        return response.status_code == httpx.codes.OK

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _stream_from(self, engine: Engine, request: GenerateRequest) -> AsyncGenerator[Reply, None]:
        call = self._http.stream("POST", f"{engine.url}/generate", **_content(engine, request))
        with _engine_errors():
            async with call as response:
                async for line in response.aiter_lines():
                    with _understanding(response):
                        reply = reply_adapter.validate_json(line)
                    yield reply
                    if reply.type != "delta":
                        return
                if response.status_code != httpx.codes.OK:
                    raise _not_understood(response)
        raise EngineFailed("The engine stopped while it was answering.", hint="Try again.")


class _NotThere(EngineFailed):
    """The engine of this row of the table does not answer at its address."""


def _in_turn(engine: Engine) -> Iterator[tuple[Engine, bool]]:
    """The engines to ask, each with whether it is the last one."""
    engines = (engine, *engine.others)
    return ((candidate, candidate is engines[-1]) for candidate in engines)


def _content(engine: Engine, request: BaseModel) -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {engine.token}"}
    return {"content": request.model_dump_json(), "headers": headers}


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _NotThere("The engine can't be reached.", hint="GET /ready shows the workers.") from error
    except httpx.TransportError as error:
        raise EngineFailed("The engine stopped while it was answering.", hint="Try again.") from error


@contextmanager
def _understanding(response: httpx.Response) -> Iterator[None]:
    """Raises _NotThere for what no engine says that knows its token."""
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise _not_understood(response)
    try:
        yield
    except ValidationError as error:
        raise _not_understood(response) from error


def _not_understood(response: httpx.Response) -> _NotThere:
    return _NotThere(
        f"The engine's answer (HTTP {response.status_code}) is not understood.",
        hint="Another process may have its address: a worker that was killed is forgotten after a lease.",
    )


def _preference(engine: Engine, base_model: str) -> tuple[bool, bool]:
    """Sorts engines: a paused one last, one without the base model after one that has it."""
    is_loaded = any(loaded.name == base_model for loaded in engine.state.loaded)
    return engine.state.paused_by is not None, not is_loaded
