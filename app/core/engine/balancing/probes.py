"""Probes of the engines that this process has requests at: whether they respond, and how busy they are.

A process that has been stopped accepts connections and sends nothing. Its worker starts it again; until then
its requests go to other engines, also those that wait for their first token there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from app.core.engine.answer_stream import AnswerStream
from app.core.engine.balancing.loads import EngineLoads
from app.core.engine.endpoints import EngineEndpoint
from app.core.engine.state import EngineHealth

PROBE_SECONDS = 1.0
_TIMEOUT_SECONDS = 3.0
# An engine that responds to no probe for so long is suspect.
SUSPECT_SECONDS = 10.0
# So long it may be silent in the middle of answers; libraries that load a model may hold Python's lock.
_SILENT_SECONDS = 60.0
_LOADING_SECONDS = 300.0

# Raises httpx.TransportError where nothing responds within the seconds given.
Probe = Callable[[EngineEndpoint, float], Awaitable[EngineHealth | None]]


@dataclass(eq=False)
class WatchedAnswer:
    """An answer that is read. `is_last`: no other engine is left for its request."""

    stream: AnswerStream
    is_last: bool
    has_begun: bool = False


@dataclass(eq=False)
class _WatchedEngine:
    endpoint: EngineEndpoint
    responded_at: float
    answers: set[WatchedAnswer] = field(default_factory=set)
    is_suspect: bool = False
    is_loading: bool = False
    task: asyncio.Task[None] | None = None


class EngineProbes:
    """Probes each engine once a second while it has requests of this process, or is suspect."""

    def __init__(self, probe: Probe, loads: EngineLoads, clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._loads = loads
        self._clock = clock
        self._engines: dict[str, _WatchedEngine] = {}

    @property
    def suspects(self) -> frozenset[str]:
        """Addresses of the engines that have responded to no probe for ten seconds."""
        return frozenset(url for url, engine in self._engines.items() if engine.is_suspect)

    @contextmanager
    def watching(
        self, endpoint: EngineEndpoint, stream: AnswerStream, *, is_last: bool
    ) -> Iterator[WatchedAnswer]:
        """Abort the answer once its engine is silent, where its request can begin anew or has waited long."""
        engine = self._engines.get(endpoint.url)
        if engine is None:
            engine = self._engines[endpoint.url] = _WatchedEngine(endpoint, self._clock())
            engine.task = asyncio.create_task(self._watch(engine))
        answer = WatchedAnswer(stream, is_last)
        engine.answers.add(answer)
        try:
            yield answer
        finally:
            engine.answers.discard(answer)

    def close(self) -> None:
        """End all probes."""
        for engine in self._engines.values():
            if engine.task is not None:
                engine.task.cancel()
        self._engines.clear()

    async def _watch(self, engine: _WatchedEngine) -> None:
        try:
            await asyncio.sleep(PROBE_SECONDS)
            while engine.answers or engine.is_suspect:
                await self._look(engine)
                await asyncio.sleep(PROBE_SECONDS)
        finally:
            url = engine.endpoint.url
            self._loads.forget_probe(url)
            if self._engines.get(url) is engine:
                del self._engines[url]

    async def _look(self, engine: _WatchedEngine) -> None:
        try:
            health = await self._probe(engine.endpoint, _TIMEOUT_SECONDS)
        except httpx.ConnectError:
            # Its process has ended, and so have its connections.
            engine.is_suspect = False
            return
        except httpx.TransportError:
            self._abort_silent(engine)
            return
        engine.responded_at, engine.is_suspect = self._clock(), False
        if health is not None:
            engine.is_loading = health.is_loading
            self._loads.record_probe(engine.endpoint.url, health)

    def _abort_silent(self, engine: _WatchedEngine) -> None:
        silent_seconds = self._clock() - engine.responded_at
        engine.is_suspect = silent_seconds >= SUSPECT_SECONDS
        is_given_up = silent_seconds >= (_LOADING_SECONDS if engine.is_loading else _SILENT_SECONDS)
        for answer in engine.answers:
            can_move = engine.is_suspect and not (answer.has_begun or answer.is_last)
            if can_move or is_given_up:
                answer.stream.abort()
        # Nobody waits for it any more; its worker's row says when it is back.
        engine.is_suspect = engine.is_suspect and not is_given_up
