"""Finds a live engine in the workers table and streams an answer from it. Knows nothing of our clients."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from httptools import HttpParserError
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from app.api.engine_stream import CONNECT_SECONDS, KEEPALIVE, AnswerStream, post
from app.core import workers
from app.core.errors import EngineFailed, NoEngine
from app.core.messages import EngineState, Failed, GenerateRequest, Reply, join_deltas, reply_adapter
from app.core.settings import Settings

AnswerT = TypeVar("AnswerT", bound=BaseModel)


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
    """Speaks to all engines: an answer that streams has a connection of its own, the rest share a pool."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=KEEPALIVE),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,  # a proxy for the internet has no business between us and the engine
        )

    async def stream(self, engine: Engine, request: GenerateRequest) -> AsyncGenerator[Reply, None]:
        """The engine's replies, the last one Finished or Failed. Closing the iterator cancels the work.

        Raises EngineFailed when the engine can't be reached, is not understood, or stops half-way.
        """
        answer = await _connect(engine, request)
        with closing(answer), _stream_errors():
            async for lines in answer.lines():
                replies, failure = _understood(lines, answer.status)
                for reply in join_deltas(replies):
                    yield reply
                    if reply.type != "delta":
                        return
                if failure is not None:
                    raise failure
        raise _broken_off()

    async def ask(
        self, engine: Engine, path: str, request: BaseModel, answer: type[AnswerT]
    ) -> AnswerT | Failed:
        """One answer to one request, or why there is none. Raises EngineFailed as `stream` does."""
        with _engine_errors():
            response = await self._http.post(f"{engine.url}{path}", **_content(engine, request))
        kind = answer if response.status_code == httpx.codes.OK else Failed
        with _understanding(response.status_code):
            return kind.model_validate_json(response.content)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


async def _connect(engine: Engine, request: BaseModel) -> AnswerStream:
    try:
        return await post(f"{engine.url}/generate", **_content(engine, request))
    except (OSError, TimeoutError) as error:
        raise _unreachable() from error


def _content(engine: Engine, request: BaseModel) -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {engine.token}"}
    return {"content": request.model_dump_json().encode(), "headers": headers}


def _understood(lines: list[bytes], status: int) -> tuple[list[Reply], EngineFailed | None]:
    """The replies up to a line that is none."""
    replies: list[Reply] = []
    try:
        for line in lines:
            with _understanding(status):
                replies.append(reply_adapter.validate_json(line))
    except EngineFailed as failure:
        return replies, failure
    return replies, None


def _unreachable() -> EngineFailed:
    return EngineFailed("The engine can't be reached.", hint="GET /ready shows the workers.")


def _broken_off() -> EngineFailed:
    return EngineFailed("The engine stopped while it was answering.", hint="Try again.")


@contextmanager
def _stream_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, HttpParserError) as error:
        raise _broken_off() from error


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as error:
        raise _unreachable() from error
    except httpx.TransportError as error:
        raise _broken_off() from error


@contextmanager
def _understanding(status: int) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise EngineFailed(f"The engine's answer (HTTP {status}) is not understood.") from error


def _preference(engine: Engine, base_model: str) -> tuple[bool, bool]:
    """Sorts engines: a paused one last, one without the base model after one that has it."""
    loaded = engine.state.base_model
    return engine.state.paused_by is not None, loaded is None or loaded.name != base_model
