"""Finds a live engine in the workers table and sends requests to it. Knows nothing of the API's clients.

The row of a killed worker stays in the table for one more lease, and its engine's port may be another
process's by then. So where no process responds at an engine's address, or one that does not accept its token
or speak its protocol, the next engine is tried.
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
from app.core.engine.messages import (
    Failed,
    Finished,
    GenerateRequest,
    Reply,
    join_deltas,
    reply_adapter,
)
from app.core.engine.state import EngineHealth, EngineState
from app.core.errors.engine import EngineFailed, NoEngine
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec

AnswerT = TypeVar("AnswerT", bound=BaseModel)


@dataclass(frozen=True)
class EngineEndpoint:
    """The address, the token and the state of a live engine."""

    url: str
    token: str
    state: EngineState
    is_silent: bool = False  # it does not answer its worker
    others: tuple["EngineEndpoint", ...] = ()  # to try if this one does not respond, best first


def find_engine(
    session: Session, settings: Settings, *, base_model: str, quantization: QuantizationSpec | None = None
) -> EngineEndpoint:
    """A live engine, and the others; one that has the base model loaded comes first. Raises NoEngine.

    Without a quantization any counts: the request needs no weights.
    """
    alive = workers.find_alive(session, lease_seconds=settings.lease_seconds, role="serve")
    engines = [
        EngineEndpoint(
            worker.engine_url,
            worker.engine_token or "",
            EngineState.model_validate(worker.engine_state or {}),
            is_silent=worker.engine_state is None,
        )
        for worker in alive
        if worker.engine_url
    ]
    if not engines:
        raise NoEngine(
            "No engine is running: a worker that serves is still starting, or there is none.",
            hint="GET /ready shows the workers; `python -m worker` starts one.",
        )
    best, *others = sorted(engines, key=lambda engine: _preference(engine, base_model, quantization))
    return replace(best, others=tuple(others))


class EngineClient:
    """A client of all engines: each streamed answer has its own connection, other requests share a pool."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=KEEPALIVE),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,  # no proxy between the API and the engine
        )

    async def stream(self, engine: EngineEndpoint, request: GenerateRequest) -> AsyncGenerator[Reply, None]:
        """The engine's replies, the last one Finished or Failed. Closing the iterator cancels the request.

        Raises EngineFailed where the engine can't be reached, sends what can't be parsed, or stops half-way.
        """
        for candidate, is_last in _candidates(engine):
            has_begun = False
            try:
                async with aclosing(self._stream_from(candidate, request)) as replies:
                    async for reply in replies:
                        has_begun = True
                        yield reply
                return
            except _EngineGone:
                if is_last or has_begun:
                    raise

    async def request(
        self, engine: EngineEndpoint, path: str, request: BaseModel, answer: type[AnswerT]
    ) -> AnswerT | Failed:
        """The response to one request, or Failed with the reason. Raises EngineFailed as `stream` does."""
        for candidate, is_last in _candidates(engine):
            try:
                with _engine_errors():
                    response = await self._http.post(f"{candidate.url}{path}", **_content(candidate, request))
                kind = answer if response.status_code == httpx.codes.OK else Failed
                with _parse_errors(response.status_code):
                    return kind.model_validate_json(response.content)
            except _EngineGone:
                if is_last:
                    raise
        raise AssertionError("the last one answers or raises")

    async def is_moving(self, url: str, token: str | None) -> bool:
        """Whether an engine with this token responds at this address, and its loop moves."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            response = await self._http.get(f"{url}/health", headers=headers, timeout=CONNECT_SECONDS)
            return EngineHealth.model_validate_json(response.content).is_moving
        except (httpx.TransportError, ValidationError):
            return False

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _stream_from(
        self, engine: EngineEndpoint, request: GenerateRequest
    ) -> AsyncGenerator[Reply, None]:
        answer = await _connect(engine, request)
        with closing(answer), _stream_errors():
            async for lines in answer.lines():
                replies, failure = _parse_replies(lines, answer.status)
                for reply in join_deltas(replies):
                    yield reply
                    if isinstance(reply, Finished | Failed):
                        return
                if failure is not None:
                    raise failure
            if answer.status != httpx.codes.OK:
                raise _unexpected(answer.status)
        raise _broken_off()


class _EngineGone(EngineFailed):
    """No engine with the expected token responds at the address."""


def _candidates(engine: EngineEndpoint) -> Iterator[tuple[EngineEndpoint, bool]]:
    """The engines to try in order, each with whether it is the last one."""
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


def _parse_replies(lines: list[bytes], status: int) -> tuple[list[Reply], EngineFailed | None]:
    """The replies up to the first line that can't be parsed, and the error of that line."""
    replies: list[Reply] = []
    try:
        for line in lines:
            with _parse_errors(status):
                replies.append(reply_adapter.validate_json(line))
    except EngineFailed as failure:
        return replies, failure
    return replies, None


def _unreachable() -> EngineFailed:
    return _EngineGone("The engine can't be reached.", hint="GET /ready shows the workers.")


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
def _parse_errors(status: int) -> Iterator[None]:
    """Raises _EngineGone for a response that no engine with this token would send."""
    if status == httpx.codes.UNAUTHORIZED:
        raise _unexpected(status)
    try:
        yield
    except ValidationError as error:
        raise _unexpected(status) from error


def _unexpected(status: int) -> _EngineGone:
    return _EngineGone(
        f"The engine's answer (HTTP {status}) is not understood.",
        hint="Another process may have its address: a worker that was killed is forgotten after a lease.",
    )


def _preference(
    engine: EngineEndpoint, base_model: str, quantization: QuantizationSpec | None
) -> tuple[bool, bool, bool]:
    """Sorts engines: a silent or paused one last, one without the base model after one that has it."""
    is_loaded = any(
        loaded.name == base_model and quantization in (None, loaded.quantization)
        for loaded in engine.state.loaded
    )
    return engine.is_silent, engine.state.paused_by is not None, not is_loaded
