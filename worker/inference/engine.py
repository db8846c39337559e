"""The engine's loop: accepts requests, loads base models, runs the steps of each batch, delivers replies.

All state changes in the thread that calls `run` or `step`; other threads put commands into a queue. A base
model is loaded in a thread of its own, so that other batches go on. Knows no torch and no HTTP: models are
behind Runner, clients behind `deliver`.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime

from app.core.engine.messages import BaseModelRef, Finished, Reply, ServingPath
from app.core.engine.state import EngineHealth, EngineState, LoadingBase
from app.core.errors import QueueFull, TunesmithError
from app.core.errors.engine import EngineFailed, GpuTaken
from app.core.errors.jobs import OutOfMemory
from worker.inference.batching.executor import BatchExecutor, RunnerBroken
from worker.inference.batching.runner import Runner
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.batching.speculation import Speculation
from worker.inference.engine_state import describe, urgent_part
from worker.inference.failures import BaseModelBusy, EngineStopping, ModelUnsupported, failed
from worker.inference.loop_health import ADAPTER_SECONDS, UNLOAD_SECONDS, LoopHealth
from worker.inference.metrics import EngineGauges, EngineMetrics
from worker.inference.speeds import Speeds

_PAUSE_GRACE_SECONDS = 5.0
_PAUSED_RETRY_AFTER_SECONDS = 30
_BUSY_RETRY_AFTER_SECONDS = 30

Deliver = Callable[[list[tuple[Sequence, Reply]]], None]
LoadRunner = Callable[[BaseModelRef], Runner]


@dataclass(frozen=True)
class EngineOptions:
    """Settings of the engine's loop."""

    # Maximum wait of a request for a base model that is not loaded.
    switch_wait_seconds: float = 600.0
    # Whether drafted tokens are verified, several in a step, where that is faster.
    speculates: bool = False
    # Called in the engine's thread after an urgent change of the state (engine_state.py).
    on_change: Callable[[], None] = lambda: None
    # Called with a base model that the paged engine can't compute, and the reason.
    on_unsupported: Callable[[BaseModelRef, str], None] = lambda _base, _reason: None


class Engine:
    """Serves any number of clients from the loaded base models, which one scheduler manages."""

    def __init__(
        self,
        load_runner: LoadRunner,
        deliver: Deliver,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
        options: EngineOptions | None = None,
    ) -> None:
        self._load_runner = load_runner
        self._deliver = deliver
        self._scheduler = scheduler
        self._clock = clock
        self._options = options or EngineOptions()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._replies: list[tuple[Sequence, Reply]] = []
        self._executors: list[BatchExecutor] = []
        self._loading: LoadingBase | None = None
        # The error for new requests while paused or stopping, and until when running sequences may go on.
        self._refusal: TunesmithError | None = None
        self._deadline = 0.0
        # Done once no base model is loaded any more.
        self._drained: list[Future[None]] = []
        self._paused_by: str | None = None
        self._shares_with: str | None = None
        # Memory that a job on the same device needs, including what it has not allocated yet.
        self.reserved_bytes = 0
        self._speeds = Speeds()
        self._last_summary: object = None
        self._health = LoopHealth(self._commands.put, clock)
        self.metrics = EngineMetrics(self._read_gauges)
        self.state = EngineState()

    @property
    def running_count(self) -> int:
        """The number of sequences in batches."""
        return sum(len(batch.running) for batch in self._scheduler.batches)

    @property
    def waiting_count(self) -> int:
        """The number of sequences in the queue."""
        return len(self._scheduler.waiting)

    def health(self) -> EngineHealth:
        """Whether the loop moves; asks it for a sign. Called in one thread only, which may be another one."""
        silence = self._health.measure()
        return EngineHealth(
            running=self.running_count,
            waiting=self.waiting_count,
            silent_seconds=silence.seconds,
            limit_seconds=silence.limit_seconds,
            is_loading=self._loading is not None,
        )

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; its replies go to `deliver`. Thread-safe, as are the next five methods."""
        self._commands.put(lambda: self._submit(sequence))

    def cancel(self, sequence: Sequence) -> None:
        """Stop generating a sequence, without a reply."""
        self._commands.put(lambda: self._cancel(sequence))

    def pause(self, job_id: str) -> Future[None]:
        """Refuse requests and free the device for a job. The future is done when the device is free."""
        refusal = GpuTaken(
            f"Job {job_id} has the GPU; serving is paused until it ends.",
            retry_after_seconds=_PAUSED_RETRY_AFTER_SECONDS,
        )
        return self._later(lambda done: self._refuse(refusal, _PAUSE_GRACE_SECONDS, done, paused_by=job_id))

    def share(self, job_id: str, reserved_bytes: int) -> Future[None]:
        """Record that a job on the same device needs `reserved_bytes`; serving goes on."""
        return self._later(lambda done: self._share(job_id, reserved_bytes, done))

    def resume(self) -> Future[None]:
        """End a pause or the sharing with a job."""
        return self._later(self._resume)

    def stop(self, grace_seconds: float) -> Future[None]:
        """Refuse requests, let running sequences go on for at most `grace_seconds`, then end `run`."""
        return self._later(lambda done: self._refuse(EngineStopping(), grace_seconds, done))

    def run(self) -> None:
        """Step until stopped. Raises RunnerBroken."""
        while self._has_work or not isinstance(self._refusal, EngineStopping):
            if not self._has_work:
                self._commands.get()()
            self.step()

    def step(self) -> None:
        """Run the queued commands, then one step of every batch, and deliver the replies.

        While a base model is loading and no batch has work, waits for a command. Raises RunnerBroken.
        """
        self._run_commands()
        self._end_grace()
        self._fail_overdue()
        self._load_next()
        try:
            self._wait_for_loading()
            self._start_waiting()
            for executor in self._executors:
                if executor.has_work:
                    with self._health.taking(executor.step_seconds):
                        began_at = self._clock()
                        executor.compact_slots(self._scheduler.wanted_adapters(executor.batch))
                        executor.step()
                        self.metrics.observe_step(self._clock() - began_at)
        except RunnerBroken:
            self._fail_all()
            raise
        finally:
            self._publish()

    @property
    def _has_work(self) -> bool:
        return (
            bool(self._scheduler.waiting or self._drained)
            or any(executor.has_work for executor in self._executors)
            # An engine that stops does not wait for a base model that is being loaded.
            or (self._loading is not None and not isinstance(self._refusal, EngineStopping))
        )

    def _run_commands(self) -> None:
        while not self._commands.empty():
            self._commands.get()()

    def _later(self, command: Callable[[Future[None]], None]) -> Future[None]:
        done: Future[None] = Future()
        self._commands.put(lambda: command(done))
        return done

    def _submit(self, sequence: Sequence) -> None:
        if self._refusal is not None:
            self._put(sequence, failed(self._refusal))
            return
        sequence.queued_at = self._clock()
        try:
            self._scheduler.add(sequence)
        except QueueFull as error:
            self._put(sequence, failed(error))

    def _cancel(self, sequence: Sequence) -> None:
        if sequence in self._scheduler.waiting:
            self._scheduler.remove(sequence)
        for executor in self._executors:
            if executor.batch.is_running(sequence):
                executor.remove(sequence)

    def _refuse(
        self, refusal: TunesmithError, grace_seconds: float, done: Future[None], paused_by: str | None = None
    ) -> None:
        self._refusal, self._deadline = refusal, self._clock() + grace_seconds
        self._paused_by = paused_by
        self._drained.append(done)
        self._fail_waiting(list(self._scheduler.waiting), refusal)

    def _share(self, job_id: str, reserved_bytes: int, done: Future[None]) -> None:
        self._shares_with, self.reserved_bytes = job_id, reserved_bytes
        self._update_state()
        done.set_result(None)

    def _resume(self, done: Future[None]) -> None:
        self._shares_with, self.reserved_bytes = None, 0
        if isinstance(self._refusal, GpuTaken):
            self._refusal = self._paused_by = None
        self._update_state()
        done.set_result(None)

    def _end_grace(self) -> None:
        """While refusing: fail running sequences after the deadline, and unload idle base models."""
        if self._refusal is None:
            return
        is_over = self._clock() >= self._deadline
        for executor in list(self._executors):
            for sequence in list(executor.batch.running) if is_over else []:
                executor.fail(sequence, self._refusal)
            if not executor.batch.running:
                self._unload(executor)
        # A paused engine is drained only once nothing is being loaded; one that stops exits with its process.
        is_loading = self._loading is not None and not isinstance(self._refusal, EngineStopping)
        if not self._executors and not is_loading:
            self._publish()
            for done in self._drained:
                done.set_result(None)
            self._drained.clear()

    def _fail_overdue(self) -> None:
        """Fail the sequences that have waited too long for a base model."""
        if not self._scheduler.waiting:
            return
        seconds = self._options.switch_wait_seconds
        since = self._clock() - seconds
        overdue = [
            sequence
            for sequence in self._scheduler.waiting
            if sequence.queued_at <= since and not self._scheduler.is_served(sequence)
        ]
        for sequence in overdue:
            busy = self._loading or self.state
            busy_with = busy.base_model.name if busy.base_model else "nothing"
            error = BaseModelBusy(
                f"The base model {sequence.prompt.base_model.name!r} could not be loaded within "
                f"{seconds:.0f} s: the engine is busy with {busy_with!r}.",
                retry_after_seconds=_BUSY_RETRY_AFTER_SECONDS,
            )
            self._fail_waiting([sequence], error)

    def _load_next(self) -> None:
        """Start to load the next base model that a sequence waits for, where the scheduler allows one."""
        switch = self._scheduler.next_switch() if self._refusal is None else None
        if switch is None:
            return
        for executor in [one for one in self._executors if one.batch is switch.leaving]:
            self._close(executor)
        self._scheduler.begin_loading(switch)
        self._loading = LoadingBase(base_model=switch.wanted, since=datetime.now(UTC))
        self._publish()
        threading.Thread(target=self._load, args=(switch.wanted,), daemon=True, name="loading").start()

    def _load(self, wanted: BaseModelRef) -> None:
        """Load a base model; runs in a thread of its own."""
        began_at = time.monotonic()
        try:
            runner = self._load_runner(wanted)
        except Exception as error:
            # Python deletes `error` at the end of the block, before the lambda runs.
            reason = error
            self._commands.put(lambda: self._not_loaded(wanted, reason))
        else:
            self.metrics.observe_load(time.monotonic() - began_at)
            self._commands.put(lambda: self._loaded(wanted, runner))

    def _loaded(self, base_model: BaseModelRef, runner: Runner) -> None:
        self._loading = None
        batch = self._scheduler.open(base_model, runner.capacity)
        speculation = None
        if self._options.speculates and runner.capacity.verified_positions:
            speculation = Speculation(runner.capacity, is_asynchronous=runner.is_asynchronous)
        counts = self.metrics.counts
        self._executors.append(BatchExecutor(batch, runner, self._put, self._clock, counts, speculation))

    def _not_loaded(self, wanted: BaseModelRef, error: Exception) -> None:
        self._loading = None
        if self._scheduler.give_up_loading(lacks_memory=isinstance(error, OutOfMemory)):
            return
        if isinstance(error, ModelUnsupported) and wanted.path is ServingPath.PAGED:
            self._options.on_unsupported(wanted, error.message)
            self._scheduler.take_general_path(wanted.key, error.message)
            return
        key = wanted.key
        self._fail_waiting([one for one in self._scheduler.waiting if one.base_key == key], error)

    def _wait_for_loading(self) -> None:
        while self._loading is not None and not any(executor.has_work for executor in self._executors):
            if isinstance(self._refusal, EngineStopping):
                return
            try:
                self._commands.get(timeout=self._seconds_to_wait())()
            except queue.Empty:
                return
            self._run_commands()
            # Deliver the replies to sequences that were refused meanwhile.
            self._publish()
            if self._refusal is not None or any(map(self._scheduler.is_served, self._scheduler.waiting)):
                return

    def _seconds_to_wait(self) -> float | None:
        """The seconds until the first sequence in the queue has waited too long."""
        if not self._scheduler.waiting:
            return None
        first = self._scheduler.waiting[0].queued_at
        return max(0.0, first + self._options.switch_wait_seconds - self._clock())

    def _unload(self, executor: BatchExecutor) -> None:
        self._close(executor)
        self._scheduler.close(executor.batch)

    def _close(self, executor: BatchExecutor) -> None:
        with self._health.taking(UNLOAD_SECONDS):
            executor.close()
        self._executors.remove(executor)

    def _start_waiting(self) -> None:
        while (started := self._scheduler.start_next()) is not None:
            executor = next(one for one in self._executors if one.batch is started.batch)
            with self._health.taking(ADAPTER_SECONDS):
                executor.start(started)

    def _fail_all(self) -> None:
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._put(sequence, failed(EngineFailed()))

    def _fail_waiting(self, sequences: list[Sequence], error: Exception) -> None:
        reply = failed(error)
        for sequence in sequences:
            self._put(sequence, reply)
            self._scheduler.remove(sequence)

    def _read_gauges(self) -> EngineGauges:
        """What the loop does now. Called in another thread."""
        batches = list(self._scheduler.batches)
        waiting = Counter(sequence.prompt.base_model.name for sequence in list(self._scheduler.waiting))
        return EngineGauges(self.running_count, dict(waiting), batches)

    def _put(self, sequence: Sequence, reply: Reply) -> None:
        self.metrics.observe_reply(reply)
        if isinstance(reply, Finished):
            self._speeds.add(sequence.prompt.base_model, sequence.prompt.model_obstacle, reply)
        self._replies.append((sequence, reply))

    def _publish(self) -> None:
        """Update the public state, and deliver all replies of this step at once."""
        self._update_state()
        if self._replies:
            replies, self._replies = self._replies, []
            self._deliver(replies)

    def _update_state(self) -> None:
        batches, waiting = self._scheduler.batches, self._scheduler.waiting_counts()
        bases = [(batch, batch.slots.resident) for batch in batches]
        served = self._speeds.records
        summary = (bases, waiting, served, self._loading, self._paused_by, self._shares_with)
        if summary == self._last_summary:
            return
        self._last_summary = summary
        before = self.state
        bits = {executor.batch: executor.runner.weight_bits for executor in self._executors}
        self.state = describe(self._scheduler, bits).model_copy(
            update={
                "served": served,
                "loading": self._loading,
                "paused_by": self._paused_by,
                "shares_with": self._shares_with,
            }
        )
        if urgent_part(before) != urgent_part(self.state):
            self._options.on_change()
