"""Verifies imported adapters while the API runs: the engine that serves must generate with each of them.

The engine reads the files as for any request and refuses those that it can't apply. The same question is sent
with the adapter and without, and the log-probabilities are compared. So the verification needs no copy of the
base model and is scheduled like any other request. Several API processes may verify the same adapter; the
first to finish records the result.
"""

import asyncio
import contextlib
import logging
import time

from anyio import to_thread

from app.api.generate.answers import Answers, collect
from app.api.http.errors import EngineRefusal
from app.core.adapters import imports as adapter_imports
from app.core.adapters.targets import Target
from app.core.engine.answers import GeneratedAnswer
from app.core.engine.client import EngineClient
from app.core.engine.endpoints import find_engine
from app.core.engine.messages import ChatMessage, Failed, GenerateRequest, ServingPath
from app.core.engine.sampling import Sampling
from app.core.errors import TunesmithError, Unavailable
from app.core.errors.engine import EngineFailed
from app.core.errors.jobs import AdapterInert
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.storage.outages import log_unless_away

_POLL_SECONDS = 2.0
_MESSAGES = [ChatMessage(role="user", content="How do I list the files of a folder?")]
_SAMPLING = Sampling(max_new_tokens=8, temperature=0, logprobs=20)
_FINAL = ("invalid", "not_found")
_MAX_WAIT_SECONDS = 60.0
# An engine that fails or freezes may do so for another request's sake, but hardly twice.
_MAX_LOST_ATTEMPTS = 2
_log = logging.getLogger(__name__)


class Importer:
    """The loop of verifications. `wake` may be called from any thread."""

    def __init__(
        self, database: Database, settings: Settings, store: ArtifactStore, engines: EngineClient
    ) -> None:
        self._database = database
        self._settings = settings
        self._store = store
        self._engines = engines
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._waits: dict[str, tuple[float, float]] = {}  # adapter id: when due again, last wait in seconds

    def wake(self) -> None:
        """Look for imports to verify now."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Verify until cancelled. An import that waits for an engine is tried again."""
        self._loop = asyncio.get_running_loop()
        while True:
            try:
                for adapter_id in await to_thread.run_sync(self._find_unverified):
                    await self._verify_if_due(adapter_id)
            except Exception as error:
                # The boundary of the loop: one failure must not end it.
                log_unless_away(_log, "Imported adapters can't be verified now", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._woken.wait()
            self._woken.clear()

    async def _verify_if_due(self, adapter_id: str) -> None:
        """Verify an import, unless an earlier attempt was too recent; the waits double up to a minute."""
        now = time.monotonic()
        due_at, wait_seconds = self._waits.get(adapter_id, (now, _POLL_SECONDS / 2))
        if due_at <= now:
            wait_seconds = min(2 * wait_seconds, _MAX_WAIT_SECONDS)
            self._waits[adapter_id] = (now + wait_seconds, wait_seconds)
            await self.verify(adapter_id)

    async def verify(self, adapter_id: str) -> None:
        """Generate with the adapter and without, and record the result in the database."""
        try:
            target = await to_thread.run_sync(self._find_target, adapter_id)
            if target is None:
                return  # deleted, or verified by another process
            general_path = await self._compare(target)
        except EngineRefusal as refusal:
            kind = refusal.failed.kind
            await to_thread.run_sync(
                self._refuse, adapter_id, refusal.failed, kind in _FINAL, kind == "internal"
            )
        except EngineFailed as error:
            await to_thread.run_sync(self._refuse, adapter_id, error, False, True)
        except Unavailable as error:
            await to_thread.run_sync(self._refuse, adapter_id, error, False, False)
        except TunesmithError as error:
            await to_thread.run_sync(self._refuse, adapter_id, error, True, False)
        else:
            await to_thread.run_sync(self._finish, adapter_id, general_path)

    async def _compare(self, target: Target) -> list[str]:
        """Returns why the engine served the adapter on its general path; empty where it did not.

        Raises AdapterInert where the tokens and their probabilities do not change with the adapter.
        """
        plain = GenerateRequest(base_model=target.base_model, messages=_MESSAGES, sampling=_SAMPLING)
        # One after the other: so a refusal belongs to the adapter, or else to its base model.
        adapted = await self._generate(target, plain.model_copy(update={"adapter": target.adapter}))
        timings = adapted.finished.timings
        # On the same path, since the probabilities of the two differ in their last digits.
        same_path = target.base_model.model_copy(update={"path": timings.path})
        without = await self._generate(target, plain.model_copy(update={"base_model": same_path}))
        if (adapted.tokens, adapted.thought_tokens) == (without.tokens, without.thought_tokens):
            raise AdapterInert(
                "The adapter does not change what the model says.", hint="Was it trained on this base model?"
            )
        return [timings.path_reason or "found by the engine"] if timings.path is ServingPath.GENERAL else []

    async def _generate(self, target: Target, request: GenerateRequest) -> GeneratedAnswer:
        answers = Answers(self._engines, target.engine, [request])
        try:
            (answer,) = await collect(answers)
        finally:
            await answers.close()
        return answer

    def _find_unverified(self) -> list[str]:
        with self._database.snapshot() as session:
            return adapter_imports.find_unverified(session)

    def _find_target(self, adapter_id: str) -> Target | None:
        with self._database.snapshot() as session:
            row = session.get(tables.AdapterImportRow, adapter_id)
            if row is None:
                return None
            base_model, adapter = adapter_imports.references(row)
            engine = find_engine(
                session,
                self._settings,
                base_model=base_model.name,
                quantization=base_model.quantization,
            )
            return Target(engine, base_model, adapter, row.name)

    def _refuse(
        self, adapter_id: str, error: TunesmithError | Failed, is_final: bool, is_suspect: bool
    ) -> None:
        """Fail the import, or let it wait.

        `is_suspect`: the engine failed or froze, perhaps because of this adapter; the second time is final.
        """
        reason = {"code": error.code, "message": error.message, "hint": error.hint}
        artifact: str | None = None
        with self._database.transaction() as session:
            lost = adapter_imports.wait(session, adapter_id, reason, is_lost=is_suspect)
            is_lost = lost >= min(self._settings.max_lost_attempts, _MAX_LOST_ATTEMPTS)
            if is_suspect and is_lost:
                reason["message"] = f"The engine failed or froze while it tried the adapter, {lost} times."
                reason["hint"] = f"The last time: {error.message}"
            if is_final or is_lost:
                artifact = adapter_imports.fail(session, adapter_id, reason)
        if artifact:
            _log.warning("Adapter %s can't be used: %s", adapter_id, error.message)
            self._store.discard(artifact)

    def _finish(self, adapter_id: str, general_path: list[str]) -> None:
        with self._database.transaction() as session:
            adapter = adapter_imports.finish(session, adapter_id, general_path=general_path)
        if adapter is not None:
            _log.info("Adapter %s was imported", adapter_id)
