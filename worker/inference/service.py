"""The engine's HTTP API: streamed generation as JSON lines, state, metrics, pause, share and resume.

The engine runs in a thread of its own. A queue for each client connects it to the event loop: a client that
reads slowly delays no other. Knows no torch.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.core.engine.messages import Failed, Finished, GenerateRequest, Reply, join_deltas
from app.core.engine.state import EngineHealth, EngineState
from app.core.errors import QueueFull
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.sequence import Sequence
from worker.inference.failures import failed
from worker.inference.metrics import EngineMetrics
from worker.processes.http_replies import as_json, is_authorized, malformed, unauthorized

_READING_THREADS = 16
_PREPARING_THREADS = 4
_PREPARING_OF_A_MODEL = 2

Prepare = Callable[[GenerateRequest], Prompt]
IsReady = Callable[[GenerateRequest], bool]


class PauseRequest(BaseModel):
    """The job that needs the whole device."""

    model_config = ConfigDict(extra="forbid")
    job_id: str


class ShareRequest(BaseModel):
    """The job that trains on the same device, and the memory it needs there."""

    model_config = ConfigDict(extra="forbid")
    job_id: str
    reserved_bytes: int


class Clients:
    """The queues of replies in the event loop, one for each sequence with a connected client."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queues: dict[Sequence, asyncio.Queue[Reply]] = {}

    def deliver(self, replies: list[tuple[Sequence, Reply]]) -> None:
        """Put replies into the queues. Called in the engine's thread; wakes the event loop once per step."""
        self._loop.call_soon_threadsafe(self._put_all, replies)

    def listen(self, sequence: Sequence) -> asyncio.Queue[Reply]:
        """Returns a new queue for the sequence's replies, of which the last is Finished or Failed."""
        self._queues[sequence] = asyncio.Queue()
        return self._queues[sequence]

    def leave(self, sequence: Sequence) -> None:
        """Remove the queue of a sequence."""
        del self._queues[sequence]

    def _put_all(self, replies: list[tuple[Sequence, Reply]]) -> None:
        for sequence, reply in replies:
            if sequence in self._queues:
                self._queues[sequence].put_nowait(reply)


class StreamedReply(Response):
    """The reply to a GenerateRequest, streamed as JSON lines. Closing the connection cancels the sequence."""

    def __init__(self, request: GenerateRequest, service: "Service") -> None:
        super().__init__(media_type="application/x-ndjson")
        self._request = request
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply until it ends or the client disconnects, whichever is first."""
        replying = asyncio.create_task(self._reply(send))
        disconnecting = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({replying, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (replying, disconnecting):
                task.cancel()
            results = await asyncio.gather(replying, disconnecting, return_exceptions=True)
        for result in results:
            # A socket that fails while it is written to means that the client has disconnected.
            if isinstance(result, Exception) and not isinstance(result, OSError):
                raise result

    async def _reply(self, send: Send) -> None:
        try:
            sequence = Sequence(await self._service.prepare(self._request))
        except Exception as error:
            await self._begin(send)
            await _send_lines(send, [failed(error)])
        else:
            await self._stream(sequence, send)
        await send({"type": "http.response.body", "body": b""})

    async def _begin(self, send: Send) -> None:
        """Send the headers; with the first line, so that the client wakes up once for both."""
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})

    async def _stream(self, sequence: Sequence, send: Send) -> None:
        replies = self._service.clients.listen(sequence)
        self._service.engine.submit(sequence)
        has_begun = has_ended = False
        try:
            while not has_ended:
                lines = [await replies.get()]
                while not replies.empty():
                    lines.append(replies.get_nowait())
                if not has_begun:
                    await self._begin(send)
                    has_begun = True
                has_ended = isinstance(lines[-1], Finished | Failed)
                await _send_lines(send, join_deltas(lines))
        finally:
            self._service.clients.leave(sequence)
            if not has_ended:
                self._service.engine.cancel(sequence)


@dataclass
class _Model:
    """Who prepares requests to one model: one at a time while it is read, then a few; and how many wait."""

    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    preparing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PREPARING_OF_A_MODEL))
    count: int = 0


class PreparingTurns:
    """Whose turn it is to be prepared, and in which threads.

    The first request to a model reads what all of them need: its adapter, its tokenizer, its chat template.
    Others to it wait in the event loop: in threads they would keep requests to other models from them, for as
    long as an object store takes. What is in memory is prepared in few threads: Python runs one at a time, so
    the engine's own thread waits the longer, the more of them compete. A model has half of these at most, so
    that a slow chat template leaves the others to other models.
    """

    def __init__(self, is_ready: IsReady) -> None:
        self._is_ready = is_ready
        self._models: dict[tuple[str, str | None], _Model] = {}
        self._reading_threads = anyio.CapacityLimiter(_READING_THREADS)
        self._preparing_threads = anyio.CapacityLimiter(_PREPARING_THREADS)

    @asynccontextmanager
    async def turn(self, request: GenerateRequest) -> AsyncIterator[anyio.CapacityLimiter]:
        """Wait for the turn of a request. Yields the threads that it is prepared in."""
        key = (request.base_model.key, request.adapter.id if request.adapter else None)
        model = self._models.setdefault(key, _Model())
        model.count += 1
        try:
            if not self._is_ready(request):
                async with model.reading:
                    # The one before may have read it.
                    if not self._is_ready(request):
                        yield self._reading_threads
                        return
            async with model.preparing:
                yield self._preparing_threads
        finally:
            model.count -= 1
            if not model.count:
                del self._models[key]


class ServedEngine(Protocol):
    """What generates."""

    state: EngineState
    metrics: EngineMetrics

    @property
    def waiting_count(self) -> int: ...
    def health(self) -> EngineHealth: ...
    def submit(self, sequence: Sequence) -> None: ...
    def cancel(self, sequence: Sequence) -> None: ...
    def pause(self, job_id: str, /) -> Future[None]: ...
    def share(self, job_id: str, reserved_bytes: int, /) -> Future[None]: ...
    def resume(self) -> Future[None]: ...


class Service:
    """The HTTP API of one engine."""

    def __init__(
        self,
        engine: ServedEngine,
        clients: Clients,
        prepare: Prepare,
        *,
        token: str,
        max_waiting: int,
        is_ready: IsReady = lambda _request: True,
    ) -> None:
        """`is_ready`: whether `prepare` will find in memory what a request needs."""
        self.engine = engine
        self.clients = clients
        self._prepare = prepare
        self._turns = PreparingTurns(is_ready)
        self._token = token
        self._max_waiting = max_waiting
        self._preparing_count = 0

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/state", self._state),
                Route("/pause", self._pause, methods=["POST"]),
                Route("/share", self._share, methods=["POST"]),
                Route("/resume", self._resume, methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ]
        )

    async def prepare(self, request: GenerateRequest) -> Prompt:
        """Preprocess a request in a thread; the first one to a model alone, before others to it.

        Raises QueueFull, and the errors of preprocessing.
        """
        waiting_count = self._preparing_count + self.engine.waiting_count
        if waiting_count >= self._max_waiting:
            raise QueueFull(
                f"{waiting_count} requests are waiting already.", hint="Try again in a few seconds."
            )
        self._preparing_count += 1
        try:
            async with self._turns.turn(request) as threads:
                return await anyio.to_thread.run_sync(self._prepare, request, limiter=threads)
        finally:
            self._preparing_count -= 1

    async def _generate(self, request: Request) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        try:
            generate = GenerateRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return malformed(error)
        return StreamedReply(generate, self)

    async def _state(self, request: Request) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        return as_json(self.engine.state)

    async def _pause(self, request: Request) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        try:
            pause = PauseRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return malformed(error)
        await asyncio.wrap_future(self.engine.pause(pause.job_id))
        return as_json(self.engine.state)

    async def _share(self, request: Request) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        try:
            share = ShareRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return malformed(error)
        await asyncio.wrap_future(self.engine.share(share.job_id, share.reserved_bytes))
        return as_json(self.engine.state)

    async def _resume(self, request: Request) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        await asyncio.wrap_future(self.engine.resume())
        return as_json(self.engine.state)

    async def _health(self, request: Request) -> Response:
        """Needs no token, but a wrong one is refused: its sender means another engine."""
        if "authorization" in request.headers and not is_authorized(request, self._token):
            return unauthorized()
        return as_json(self.engine.health())

    async def _metrics(self, request: Request) -> Response:
        if not is_authorized(request, self._token):
            return unauthorized()
        return PlainTextResponse(self.engine.metrics.render(), media_type="text/plain; version=0.0.4")


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_lines(send: Send, replies: list[Reply]) -> None:
    body = "".join(reply.model_dump_json() + "\n" for reply in replies)
    await send({"type": "http.response.body", "body": body.encode(), "more_body": True})
