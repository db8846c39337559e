"""The engine whose tokens an external vLLM makes. Has the methods of Engine that its HTTP API uses.

`run` is an event loop in a thread of its own. A sequence turns vLLM's tokens into text as with the built-in
engine. Adapters are loaded before their first answer, and unloaded where the worker says that they are gone.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing

from app.core.engine.messages import BaseModelRef, Delta, Finished, Reply
from app.core.engine.state import EngineHealth, EngineState, ServedBase
from app.core.errors.base_models import UnknownModel
from app.core.errors.engine import EngineFailed, PromptTooLong, VllmUnreachable
from app.core.specs.job import QuantizationSpec
from worker.inference.batching.sequence import Sequence
from worker.inference.failures import EngineStopping, failed
from worker.inference.general.adapters import PeftFolder
from worker.inference.metrics import EngineGauges, EngineMetrics
from worker.inference.vllm.adapter_folders import AdapterFolders
from worker.inference.vllm.client import ModelNotServed, VllmBase, VllmClient, VllmModels
from worker.inference.vllm.completions import check_supported, make_body

log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
# Once vLLM has responded to no look for so long, answers without a token fail; those that have begun later.
_SILENT_SECONDS = 10.0
_BEGUN_SILENT_SECONDS = 60.0
_WEIGHT_BITS = 16

Deliver = Callable[[list[tuple[Sequence, Reply]]], None]


class VllmEngine:
    """Serves any number of clients from the base models and adapters of one vLLM."""

    reserved_bytes = 0

    def __init__(
        self,
        client: Callable[[], VllmClient],
        deliver: Deliver,
        folders: AdapterFolders,
        on_change: Callable[[], None],
    ) -> None:
        self._make_client = client
        self._deliver_all = deliver
        self.metrics = EngineMetrics(lambda: EngineGauges(len(self._answering)))
        self._folders = folders
        self._on_change = on_change
        self._loop = asyncio.new_event_loop()
        self._answering: dict[Sequence, asyncio.Task[None]] = {}
        self._loading: dict[str, asyncio.Lock] = {}
        self._models = VllmModels([], {})
        self._problem: str | None = None
        self._responded_at = time.monotonic()
        self._asked_at: float | None = None
        # Quantizations of the base models that requests name: vLLM has one copy of the weights for all.
        self._quantizations: list[QuantizationSpec] = [QuantizationSpec()]
        self._stopping = asyncio.Event()
        self._grace_seconds = 0.0
        self._is_refusing = threading.Event()
        self.state = EngineState(is_external=True, max_base_models=0)

    @property
    def waiting_count(self) -> int:
        """The number of sequences that wait here: none, since vLLM has the queue."""
        return 0

    def run(self) -> None:
        """Serve until stopped."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    def submit(self, sequence: Sequence) -> None:
        """Generate a sequence; its replies go to `deliver`. Thread-safe, as are the next ones."""
        if self._is_refusing.is_set():
            self._deliver([(sequence, failed(EngineStopping()))])
            return
        self._loop.call_soon_threadsafe(self._start, sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Stop generating a sequence, without a reply."""
        self._loop.call_soon_threadsafe(self._cancel, sequence)

    def pause(self, _job_id: str) -> Future[None]:
        """Nothing to do, nor for the next two: no job of this host needs vLLM's device."""
        return _done()

    def share(self, _job_id: str, _reserved_bytes: int) -> Future[None]:
        """See `pause`."""
        return _done()

    def resume(self) -> Future[None]:
        """See `pause`."""
        return _done()

    def stop(self, grace_seconds: float) -> Future[None]:
        """Refuse requests, let running ones go on for at most `grace_seconds`, then end `run`."""
        self._is_refusing.set()
        self._grace_seconds = grace_seconds
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        return _done()

    def health(self) -> EngineHealth:
        """Whether the loop moves, and what is wrong with vLLM."""
        asked_at = self._asked_at
        if asked_at is None:
            asked_at = self._asked_at = time.monotonic()
            self._loop.call_soon_threadsafe(self._give_sign)
        return EngineHealth(
            running=len(self._answering),
            silent_seconds=time.monotonic() - asked_at,
            limit_seconds=_LOOK_SECONDS * 5,
            problem=self._problem,
        )

    async def unload(self, adapter_ids: Iterable[str]) -> None:
        """Unload adapters that are deleted. Called in another event loop. Raises VllmUnreachable."""
        unloading = asyncio.run_coroutine_threadsafe(self._unload(list(adapter_ids)), self._loop)
        await asyncio.wrap_future(unloading)

    def _deliver(self, replies: list[tuple[Sequence, Reply]]) -> None:
        """Deliver replies, and count what has ended: vLLM has metrics of its own for the rest."""
        for _, reply in replies:
            self.metrics.observe_reply(reply)
            if isinstance(reply, Finished):
                self.metrics.counts.prompt_tokens += reply.usage.prompt_tokens
                self.metrics.counts.generation_tokens += reply.usage.completion_tokens
        self._deliver_all(replies)

    def _give_sign(self) -> None:
        self._asked_at = None

    async def _run(self) -> None:
        self._client = self._make_client()
        looking = asyncio.create_task(self._look_for_ever())
        await self._stopping.wait()
        looking.cancel()
        running = set(self._answering.values())
        if running:
            await asyncio.wait(running, timeout=self._grace_seconds)
        for sequence in list(self._answering):
            self._deliver([(sequence, failed(EngineStopping()))])
            self._cancel(sequence)
        await asyncio.gather(looking, *running, return_exceptions=True)
        await self._client.close()

    async def _look_for_ever(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """Learn what vLLM serves: it may have been started again without the adapters."""
        try:
            self._models, problem = await self._client.list_models(), None
            self._responded_at = time.monotonic()
        except VllmUnreachable as error:
            problem = error.message
            self._fail_silent(error)
        if problem != self._problem:
            log.warning("%s", problem or "vLLM responds again")
            self._problem = problem
        self._update_state()

    def _fail_silent(self, error: VllmUnreachable) -> None:
        """Fail the answers that have waited too long for a silent vLLM: another engine may serve them."""
        silent_seconds = time.monotonic() - self._responded_at
        for sequence in list(self._answering):
            if silent_seconds >= (_BEGUN_SILENT_SECONDS if sequence.token_ids else _SILENT_SECONDS):
                self._deliver([(sequence, failed(error))])
                self._cancel(sequence)

    def _update_state(self) -> None:
        root = self._folders.root
        # Not those that vLLM was started with under names of its own: they are not unloaded from here.
        adapters = [
            name
            for name, path in self._models.adapters.items()
            if root and path.is_relative_to(root) and path.name == name
        ]
        names = {name for base in self._models.bases for name in (base.name, base.root.rpartition("/")[2])}
        bases = [
            ServedBase(
                base_model=BaseModelRef(name=name, quantization=quantization),
                weight_bits=_WEIGHT_BITS,
                adapters=adapters,
            )
            for name in sorted({*names, *(base.root for base in self._models.bases)})
            for quantization in self._quantizations
        ]
        state = EngineState(
            base_model=bases[-1].base_model if bases else None,
            adapters=adapters,
            bases=bases,
            max_base_models=0,
            is_external=True,
        )
        if state != self.state:
            self.state = state
            self._on_change()

    def _start(self, sequence: Sequence) -> None:
        task = self._loop.create_task(self._answer(sequence))
        self._answering[sequence] = task
        task.add_done_callback(lambda _task: self._answering.pop(sequence, None))

    def _cancel(self, sequence: Sequence) -> None:
        task = self._answering.get(sequence)
        if task is not None:
            task.cancel()

    async def _answer(self, sequence: Sequence) -> None:
        try:
            await self._generate(sequence)
        except Exception as error:
            self._deliver([(sequence, failed(error))])

    async def _generate(self, sequence: Sequence) -> None:
        prompt = sequence.prompt
        check_supported(prompt)
        base = await self._find_base(prompt.base_model)
        sequence.length_limit = base.max_length
        if base.max_length is not None and not sequence.fits(base.max_length):
            raise PromptTooLong.of(
                len(prompt.token_ids), base.max_length, base.max_length, has_answer=prompt.makes_tokens
            )
        await self._load(prompt.adapter)
        sequence.start()
        if not prompt.makes_tokens:
            self._deliver([(sequence, sequence.finish_read())])
            return
        try:
            await self._stream(sequence, base)
        except ModelNotServed:
            # vLLM was started again meanwhile, and has forgotten the adapter.
            self._models = await self._client.list_models()
            await self._load(prompt.adapter)
            await self._stream(sequence, base)

    async def _stream(self, sequence: Sequence, base: VllmBase) -> None:
        prompt = sequence.prompt
        body = make_body(
            prompt, sequence.adapter_id or base.name, sequence.max_length - len(prompt.token_ids)
        )
        async with aclosing(self._client.complete(body, prompt.sampling.logprobs)) as parts:
            async for part in parts:
                replies: list[Delta | Finished] = []
                for token in part.tokens:
                    replies += sequence.add_token(token)
                    if sequence.finish_reason is not None:
                        break
                if sequence.finish_reason is None and part.finish_reason is not None:
                    replies += sequence.end(is_cut=part.finish_reason == "length")
                if sequence.finish_reason is not None:
                    replies.append(sequence.finished())
                self._deliver([(sequence, reply) for reply in replies])
                if sequence.finish_reason is not None:
                    return
        raise EngineFailed("vLLM ended the answer without a reason.", hint="Try again.")

    async def _find_base(self, base_model: BaseModelRef) -> VllmBase:
        if base_model.quantization not in self._quantizations:
            self._quantizations.append(base_model.quantization)
        found = next((one for one in self._models.bases if one.is_named(base_model.name)), None)
        if found is None:
            self._models = await self._client.list_models()
            found = next((one for one in self._models.bases if one.is_named(base_model.name)), None)
        if found is None:
            served = ", ".join(base.name for base in self._models.bases) or "nothing"
            raise UnknownModel(
                f"vLLM does not serve the base model {base_model.name!r}.",
                param="base_model",
                hint=f"It serves {served}. Start another vLLM, or a worker with the built-in engine, for it.",
            )
        return found

    async def _load(self, adapter: object) -> None:
        """Load an adapter unless vLLM has it; requests for the same one wait for one loading."""
        if not isinstance(adapter, PeftFolder):
            return
        async with self._loading.setdefault(adapter.id, asyncio.Lock()):
            if adapter.id in self._models.adapters:
                return
            await self._client.load_adapter(adapter.id, adapter.folder)
            self._models.adapters[adapter.id] = adapter.folder
        self._update_state()

    async def _unload(self, adapter_ids: list[str]) -> None:
        for adapter_id in adapter_ids:
            await self._client.unload_adapter(adapter_id)
            self._models.adapters.pop(adapter_id, None)
            self._loading.pop(adapter_id, None)
            self._folders.remove(adapter_id)
            log.info("The deleted adapter %s is unloaded", adapter_id)
        self._update_state()


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done
