"""Requests of an evaluation to whichever engine runs: they wait while none can generate, and are sent again.

An engine may be restarted, paused while a job trains, or loading: none of these ends an evaluation. A request
that is wrong, or that breaks the engine again and again, has an error instead of an answer.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TypeVar

from anyio import to_thread
from pydantic import BaseModel

from app.core.engine.answers import GeneratedAnswer, join_answer
from app.core.engine.client import EngineClient, EngineGone
from app.core.engine.endpoints import EngineEndpoint, find_engine
from app.core.engine.messages import BaseModelRef, Delta, Failed, Finished, GenerateRequest
from app.core.errors.engine import EngineFailed, NoEngine
from app.core.errors.evaluations import EvaluationFailure
from app.core.settings import Settings
from app.core.storage.database import Database

# Broken answers, internal errors, and lacks of memory of one request, before it counts as failed.
_MAX_FAILURES = 5
_RETRY_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 30.0
# These pass without the request being at fault.
_PASSING = {"gpu_taken", "no_engine", "base_model_busy", "engine_stopping", "queue_full", "hub_unreachable"}

AnswerT = TypeVar("AnswerT", bound=BaseModel)
# Called with the reason when a request begins to wait, and with None when one has been sent.
OnWait = Callable[[str | None], None]


class RequestRefused(Exception):
    """The engine has no answer to a request, and would not have one later."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class EngineRequests:
    """Sends requests to engines until they are served. Used from one event loop; must be closed."""

    def __init__(self, settings: Settings, database: Database, on_wait: OnWait) -> None:
        self._settings = settings
        self._database = database
        self._on_wait = on_wait
        self._client = EngineClient()

    async def generate(self, request: GenerateRequest) -> GeneratedAnswer:
        """Returns the whole answer. Raises RequestRefused, and EvaluationFailure where a model is gone."""
        attempt = _Attempts(self._on_wait)
        while True:
            try:
                engine = await self._find(request.base_model)
                found = await self._generate(engine, request)
            except (NoEngine, EngineFailed) as error:
                await attempt.wait_after_error(error)
                continue
            if isinstance(found, GeneratedAnswer):
                self._on_wait(None)
                return found
            await attempt.wait_after(found)

    async def ask(
        self, path: str, base_model: BaseModelRef, request: BaseModel, answer: type[AnswerT]
    ) -> AnswerT:
        """Returns the response to another request of the engine. Raises as `generate` does."""
        attempt = _Attempts(self._on_wait)
        while True:
            try:
                found = await self._client.request(await self._find(base_model), path, request, answer)
            except (NoEngine, EngineFailed) as error:
                await attempt.wait_after_error(error)
                continue
            if not isinstance(found, Failed):
                self._on_wait(None)
                return found
            await attempt.wait_after(found)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _generate(self, engine: EngineEndpoint, request: GenerateRequest) -> GeneratedAnswer | Failed:
        deltas: list[Delta] = []
        async with aclosing(self._client.stream(engine, request)) as replies:
            async for reply in replies:
                if isinstance(reply, Failed):
                    return reply
                if isinstance(reply, Finished):
                    return join_answer(deltas, reply)
                deltas.append(reply)
        raise EngineFailed

    async def _find(self, base_model: BaseModelRef) -> EngineEndpoint:
        """An engine, one that has the base model if there is one. Raises NoEngine."""

        def find() -> EngineEndpoint:
            with self._database.snapshot() as session:
                return find_engine(
                    session,
                    self._settings,
                    base_model=base_model.name,
                    quantization=base_model.quantization,
                )

        return await to_thread.run_sync(find)


class _Attempts:
    """The attempts of one request."""

    def __init__(self, on_wait: OnWait) -> None:
        self._on_wait = on_wait
        self._failures = 0

    async def wait_after_error(self, error: NoEngine | EngineFailed) -> None:
        """Wait until the next attempt. Raises RequestRefused where an engine broke off too often."""
        if not isinstance(error, NoEngine | EngineGone):
            self._count(error.code, error.message)
        await self._wait(error.message, error.retry_after_seconds)

    async def wait_after(self, failed: Failed) -> None:
        """Wait until the next attempt. Raises RequestRefused, and EvaluationFailure for a missing model."""
        if failed.kind == "not_found":
            raise EvaluationFailure(failed.message, hint=failed.hint)
        if failed.kind == "invalid":
            raise RequestRefused(failed.code, failed.message)
        if failed.code not in _PASSING:
            self._count(failed.code, failed.message)
        await self._wait(failed.message, failed.retry_after_seconds)

    def _count(self, code: str, message: str) -> None:
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            raise RequestRefused(code, message)

    async def _wait(self, reason: str, seconds: float | None) -> None:
        self._on_wait(reason)
        # The engine says when to try again; nothing announces that it can.
        await asyncio.sleep(min(_RETRY_SECONDS if seconds is None else seconds, _LONGEST_WAIT_SECONDS))
