"""Finds a live engine in the workers table and streams an answer from it. Knows nothing of our clients.

A worker that was killed stands in the table for one more lease, and its engine's port may be another
process's by then. So an address where nobody answers, or nobody who knows the engine's token and language, is
passed over for the next engine.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
from httptools import HttpParserError
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from app.api.generate.engine_stream import CONNECT_SECONDS, KEEPALIVE, AnswerStream, post
from app.core.engine import workers
from app.core.engine.messages import EngineState, Failed, GenerateRequest, Reply, join_deltas, reply_adapter
from app.core.errors.engine import EngineFailed, NoEngine
from app.core.settings import Settings

AnswerT = TypeVar("AnswerT", bound=BaseModel)


@dataclass(frozen=True)
class EngineEndpoint:
    """Where a live engine is, and what it serves."""

    url: str
    token: str
    state: EngineState
    others: tuple["EngineEndpoint", ...] = ()  # to ask where this one turns out to be gone, the best first


def find_engine(session: Session, settings: Settings, *, base_model: str) -> EngineEndpoint:
    """A live engine, and the others; one that has the base model loaded comes first. Raises NoEngine."""
    alive = workers.find_alive(session, lease_seconds=settings.lease_seconds, role="serve")
    engines = [
        EngineEndpoint(
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
    """Speaks to all engines: an answer that streams has a connection of its own, the rest share a pool."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=KEEPALIVE),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,  # a proxy for the internet has no business between us and the engine
        )

    async def stream(self, engine: EngineEndpoint, request: GenerateRequest) -> AsyncGenerator[Reply, None]:
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
        self, engine: EngineEndpoint, path: str, request: BaseModel, answer: type[AnswerT]
    ) -> AnswerT | Failed:
        """One answer to one request, or why there is none. Raises EngineFailed as `stream` does."""
        for candidate, is_last in _in_turn(engine):
            try:
                with _engine_errors():
                    response = await self._http.post(f"{candidate.url}{path}", **_content(candidate, request))
                kind = answer if response.status_code == httpx.codes.OK else Failed
                with _understanding(response.status_code):
                    return kind.model_validate_json(response.content)
            except _NotThere:
                if is_last:
                    raise
        raise AssertionError("the last one answers or raises")

    async def is_there(self, url: str, token: str | None) -> bool:
        """Whether the engine of a worker's row answers, and no other process at its address."""
        headers = {"authorization": f"Bearer {token or ''}"}
        try:
            response = await self._http.get(f"{url}/state", headers=headers, timeout=CONNECT_SECONDS)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return False
        except httpx.TransportError:
            return True  # busy beyond measure, perhaps; a request will tell
        return response.status_code == httpx.codes.OK

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _stream_from(
        self, engine: EngineEndpoint, request: GenerateRequest
    ) -> AsyncGenerator[Reply, None]:
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
            if answer.status != httpx.codes.OK:
                raise _not_understood(answer.status)
        raise _broken_off()


class _NotThere(EngineFailed):
    """The engine of this row of the table does not answer at its address."""


def _in_turn(engine: EngineEndpoint) -> Iterator[tuple[EngineEndpoint, bool]]:
    """The engines to ask, each with whether it is the last one."""
    engines = (engine, *engine.others)
    return ((candidate, candidate is engines[-1]) for candidate in engines)


async def _connect(engine: EngineEndpoint, request: BaseModel) -> AnswerStream:
    try:
        return await post(f"{engine.url}/generate", **_content(engine, request))
    except OSError as error:
        raise _unreachable() from error


def _content(engine: EngineEndpoint, request: BaseModel) -> dict[str, Any]:
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
    return _NotThere("The engine can't be reached.", hint="GET /ready shows the workers.")


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
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _unreachable() from error
    except httpx.TransportError as error:
        raise _broken_off() from error


@contextmanager
def _understanding(status: int) -> Iterator[None]:
    """Raises _NotThere for what no engine says that knows its token."""
    if status == httpx.codes.UNAUTHORIZED:
        raise _not_understood(status)
    try:
        yield
    except ValidationError as error:
        raise _not_understood(status) from error


def _not_understood(status: int) -> _NotThere:
    return _NotThere(
        f"The engine's answer (HTTP {status}) is not understood.",
        hint="Another process may have its address: a worker that was killed is forgotten after a lease.",
    )


def _preference(engine: EngineEndpoint, base_model: str) -> tuple[bool, bool]:
    """Sorts engines: a paused one last, one without the base model after one that has it."""
    is_loaded = any(loaded.name == base_model for loaded in engine.state.loaded)
    return engine.state.paused_by is not None, not is_loaded
