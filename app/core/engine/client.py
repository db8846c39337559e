"""Sends requests to engines. Knows nothing of the API's clients.

The row of a killed worker stays in the table for one more lease, and its engine's port may be another
process's by then. So where no process responds at an engine's address, or one that does not accept its token
or speak its protocol, the next engine is tried. So it is where an engine ends before the first token.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import Any, TypeVar

import httpx
from httptools import HttpParserError
from pydantic import BaseModel, ValidationError

from app.core.engine.answer_stream import CONNECT_SECONDS, KEEPALIVE, AnswerStream, post
from app.core.engine.balancing.choice import choose
from app.core.engine.balancing.loads import EngineLoads, Wanted
from app.core.engine.balancing.probes import EngineProbes
from app.core.engine.endpoints import EngineEndpoint
from app.core.engine.messages import (
    Failed,
    Finished,
    GenerateRequest,
    Reply,
    join_deltas,
    reply_adapter,
)
from app.core.engine.state import EngineHealth
from app.core.errors.engine import EngineFailed, VllmUnreachable

# An answer that breaks off is begun again once: a request that ends two engines would end a third one.
_MAX_BROKEN_OFF = 1
# Shorter than the 5 s after which an engine's server (uvicorn) closes an idle connection: a request that is
# sent just then is lost.
IDLE_SECONDS = 2.0
# An engine that takes longer delays no scrape of the others'.
_METRICS_SECONDS = 1.0
# Refusals of one engine that another one may not have.
_OF_ONE_ENGINE = {"queue_full", "gpu_taken"}
# What an engine that ends, or has no vLLM, sends for requests that another one may serve.
_ENDS = {"engine_stopping", EngineFailed.code, VllmUnreachable.code}

log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class EngineClient:
    """A client of all engines: each streamed answer has its own connection, other requests share a pool."""

    def __init__(self) -> None:
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=32, keepalive_expiry=IDLE_SECONDS
        )
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=KEEPALIVE),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,  # no proxy between the API and the engine
        )
        self._loads = EngineLoads()
        self._probes = EngineProbes(self._probe, self._loads)
        self._copying: set[asyncio.Task[None]] = set()

    async def stream(self, engine: EngineEndpoint, request: GenerateRequest) -> AsyncGenerator[Reply, None]:
        """The replies of one of the engines, the last one Finished or Failed. Closing it cancels the request.

        Raises EngineFailed where no engine can be reached, or one sends what can't be parsed, or stops after
        its first reply.
        """
        order, equals = self._choose(engine, request)
        broken_off = 0
        for candidate, following in zip(order, [*order[1:], None], strict=True):
            has_begun, is_last = False, following is None
            try:
                async with aclosing(self._stream_from(candidate, request, is_last=is_last)) as replies:
                    async for reply in replies:
                        if isinstance(reply, Failed) and not has_begun and following is not None:
                            _raise_if_ended(reply)
                            if reply.code in _OF_ONE_ENGINE and following.url in equals:
                                break
                        has_begun = True
                        yield reply
                    else:
                        return
            except EngineFailed as error:
                broken_off += not isinstance(error, EngineGone)
                if is_last or has_begun or broken_off > _MAX_BROKEN_OFF:
                    raise
                log.warning("Another engine takes over a request of %s: %s", candidate.url, error.message)

    async def request(
        self, engine: EngineEndpoint, path: str, request: BaseModel, answer: type[AnswerT]
    ) -> AnswerT | Failed:
        """The response to one request, or Failed with the reason. Raises EngineFailed as `stream` does.

        What breaks off is sent to one more engine, so that engines may get a request twice.
        """
        broken_off = 0
        for candidate, is_last in self._candidates(engine):
            try:
                with _engine_errors():
                    response = await self._http.post(f"{candidate.url}{path}", **_content(candidate, request))
                kind = answer if response.status_code == httpx.codes.OK else Failed
                with _parse_errors(response.status_code):
                    return kind.model_validate_json(response.content)
            except EngineFailed as error:
                broken_off += not isinstance(error, EngineGone)
                if is_last or broken_off > _MAX_BROKEN_OFF:
                    raise
                log.warning("Another engine takes over %s of %s: %s", path, candidate.url, error.message)
        raise AssertionError("the last one responds or raises")

    async def is_moving(self, url: str, token: str | None) -> bool:
        """Whether an engine with this token responds at this address, and its loop moves."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            response = await self._http.get(f"{url}/health", headers=headers, timeout=CONNECT_SECONDS)
            return EngineHealth.model_validate_json(response.content).is_moving
        except (httpx.TransportError, ValidationError):
            return False

    async def read_metrics(self, url: str, token: str | None) -> str | None:
        """Returns an engine's metrics in Prometheus' text format, or None where it is silent."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            async with asyncio.timeout(_METRICS_SECONDS):
                response = await self._http.get(f"{url}/metrics", headers=headers)
        except (httpx.TransportError, TimeoutError):
            return None
        return response.text if response.status_code == httpx.codes.OK else None

    async def _probe(self, engine: EngineEndpoint, timeout_seconds: float) -> EngineHealth | None:
        """The health of an engine; None where another process responds. Raises httpx.TransportError."""
        headers = {"authorization": f"Bearer {engine.token}"}
        response = await self._http.get(f"{engine.url}/health", headers=headers, timeout=timeout_seconds)
        try:
            return EngineHealth.model_validate_json(response.content)
        except ValidationError:
            return None

    async def close(self) -> None:
        """Close every connection."""
        self._probes.close()
        for copying in list(self._copying):
            copying.cancel()
        await asyncio.gather(*self._copying, return_exceptions=True)
        await self._http.aclose()

    def _candidates(self, engine: EngineEndpoint) -> Iterator[tuple[EngineEndpoint, bool]]:
        """The engines to try in order, each with whether it is the last one."""
        suspects = self._probes.suspects
        engines = sorted((engine, *engine.others), key=lambda one: one.url in suspects)
        return ((candidate, candidate is engines[-1]) for candidate in engines)

    def _choose(
        self, engine: EngineEndpoint, request: GenerateRequest
    ) -> tuple[list[EngineEndpoint], frozenset[str]]:
        """The engines to try, best first, and the addresses of those that have the base model.

        Where requests have queued for long, an engine that should load the same begins to.
        """
        found = choose((engine, *engine.others), request, self._loads, self._probes.suspects)
        target, wanted = found.copy_to, Wanted.of(request)
        if target is not None and self._loads.begin_copy(target.url, wanted):
            copying = asyncio.create_task(self._copy(target, request))
            self._copying.add(copying)
            copying.add_done_callback(self._copying.discard)
        return found.order, found.equals

    async def _copy(self, engine: EngineEndpoint, request: GenerateRequest) -> None:
        """Have an engine load what a request needs, by a request that makes no token."""
        loading = GenerateRequest(
            base_model=request.base_model, adapter=request.adapter, prompt="Hello", reads_only=True
        )
        try:
            async with aclosing(self._read(await _connect(engine, loading))) as replies:
                async for reply in replies:
                    if isinstance(reply, Finished):
                        self._loads.record_use(engine.url, Wanted.of(request))
                        log.info("%s has a further copy of what many requests wait for", engine.url)
                    elif isinstance(reply, Failed):
                        log.warning("%s can't load a further copy: %s", engine.url, reply.message)
        except EngineFailed as error:
            log.warning("%s can't load a further copy: %s", engine.url, error.message)

    async def _stream_from(
        self, engine: EngineEndpoint, request: GenerateRequest, *, is_last: bool
    ) -> AsyncGenerator[Reply, None]:
        wanted = Wanted.of(request)
        with self._loads.counting(engine.url, wanted):
            answer = await _connect(engine, request)
            with self._probes.watching(engine, answer, is_last=is_last) as watched:
                async with aclosing(self._read(answer)) as replies:
                    async for reply in replies:
                        if not watched.has_begun and not isinstance(reply, Failed):
                            watched.has_begun = True
                            self._loads.record_use(engine.url, wanted)
                        yield reply

    async def _read(self, answer: AnswerStream) -> AsyncGenerator[Reply, None]:
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


class EngineGone(EngineFailed):
    """No engine with the expected token responds at the address."""


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


def _raise_if_ended(reply: Failed) -> None:
    if reply.code in _ENDS:
        raise EngineFailed(reply.message, hint=reply.hint)


def _unreachable() -> EngineFailed:
    return EngineGone("The engine can't be reached.", hint="GET /ready shows the workers.")


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
    """Raises EngineGone for a response that no engine with this token would send."""
    if status == httpx.codes.UNAUTHORIZED:
        raise _unexpected(status)
    try:
        yield
    except ValidationError as error:
        raise _unexpected(status) from error


def _unexpected(status: int) -> EngineGone:
    return EngineGone(
        f"The engine's answer (HTTP {status}) is not understood.",
        hint="Another process may have its address: a worker that was killed is forgotten after a lease.",
    )
