"""The engine's loop: take requests, load base models, let each executor do its step, hand out what was made.

Everything that changes state happens in the one thread that calls `run` or `step`; other threads leave
commands. Only loading a base model has a thread of its own, so that others go on meanwhile. Knows no torch
and no HTTP: models are behind Runner, clients behind `deliver`.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime

from app.core.engine.messages import BaseModelRef, EngineState, LoadingBase, Reply
from app.core.errors import QueueFull, TunesmithError
from app.core.errors.engine import EngineFailed, GpuTaken
from app.core.errors.jobs import OutOfMemory
from worker.inference.batching.executor import BatchExecutor, Runner, RunnerBroken
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine_state import describe, news
from worker.inference.failures import BaseModelBusy, EngineStopping, failed

_PAUSE_GRACE_SECONDS = 5.0
_PAUSED_RETRY_AFTER_SECONDS = 30
_BUSY_RETRY_AFTER_SECONDS = 30

Deliver = Callable[[list[tuple[Sequence, Reply]]], None]
LoadRunner = Callable[[BaseModelRef], Runner]


@dataclass(frozen=True)
class Options:
    """How the engine behaves towards those who wait."""

    # So long may a request wait for a base model that is not loaded.
    switch_wait_seconds: float = 600.0
    # Called in the engine's thread when it loads, has loaded, drops or pauses.
    on_change: Callable[[], None] = lambda: None


class Engine:
    """One scheduler, a few loaded base models, any number of clients."""

    def __init__(
        self,
        load_runner: LoadRunner,
        deliver: Deliver,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
        options: Options | None = None,
    ) -> None:
        self._load_runner = load_runner
        self._deliver = deliver
        self._scheduler = scheduler
        self._clock = clock
        self._options = options or Options()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._replies: list[tuple[Sequence, Reply]] = []
        self._executors: list[BatchExecutor] = []
        self._loading: LoadingBase | None = None
        # Why new work is refused, and until when what runs may go on; None while the engine serves.
        self._refusal: TunesmithError | None = None
        self._deadline = 0.0
        self._quiet: list[Future[None]] = []
        self._paused_by: str | None = None
        self._shares_with: str | None = None
        # What a job beside needs of the device, from the time before it has taken it.
        self.reserved_bytes = 0
        self._shown: object = None
        self.state = EngineState()

    @property
    def running_count(self) -> int:
        """Sequences in a executor."""
        return sum(len(batch.running) for batch in self._scheduler.batches)

    @property
    def waiting_count(self) -> int:
        """Sequences in the queue."""
        return len(self._scheduler.waiting)

    def submit(self, sequence: Sequence) -> None:
        """Answer this sequence; the replies go to `deliver`. From any thread, as the next five."""
        self._commands.put(lambda: self._submit(sequence))

    def cancel(self, sequence: Sequence) -> None:
        """Nobody wants the rest of this sequence."""
        self._commands.put(lambda: self._cancel(sequence))

    def pause(self, job_id: str) -> Future[None]:
        """Refuse work and free the device for a job; the future is done when that has happened."""
        refusal = GpuTaken(
            f"Job {job_id} has the GPU; serving is paused until it ends.",
            retry_after_seconds=_PAUSED_RETRY_AFTER_SECONDS,
        )
        return self._later(lambda done: self._refuse(refusal, _PAUSE_GRACE_SECONDS, done, paused_by=job_id))

    def share(self, job_id: str, reserved_bytes: int) -> Future[None]:
        """Serve beside a job, and leave it this much of the device."""
        return self._later(lambda done: self._share(job_id, reserved_bytes, done))

    def resume(self) -> Future[None]:
        """Have the device for serving alone again."""
        return self._later(self._resume)

    def stop(self, grace_seconds: float) -> Future[None]:
        """Refuse work, let what runs go on for so long, then end `run`."""
        return self._later(lambda done: self._refuse(EngineStopping(), grace_seconds, done))

    def run(self) -> None:
        """Work until stopped. Raises RunnerBroken."""
        while self._has_work or not isinstance(self._refusal, EngineStopping):
            if not self._has_work:
                self._commands.get()()
            self.step()

    def step(self) -> None:
        """Run the queued commands, then one step of every batch, and deliver the replies.

        While a base model is loading and no batch has work, waits for a command. Raises RunnerBroken.
        """
        self._obey()
        self._end_grace()
        self._fail_overdue()
        self._load_wanted()
        try:
            self._wait_for_loading()
            self._start_waiting()
            for executor in self._executors:
                if executor.has_work:
                    executor.step()
        except RunnerBroken:
            self._abandon()
            raise
        finally:
            self._publish()

    @property
    def _has_work(self) -> bool:
        return (
            bool(self._scheduler.waiting or self._quiet)
            or any(executor.has_work for executor in self._executors)
            # What it was loading is of no use to an engine that stops.
            or (self._loading is not None and not isinstance(self._refusal, EngineStopping))
        )

    def _obey(self) -> None:
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
        self._quiet.append(done)
        self._fail_waiting(list(self._scheduler.waiting), refusal)

    def _share(self, job_id: str, reserved_bytes: int, done: Future[None]) -> None:
        self._shares_with, self.reserved_bytes = job_id, reserved_bytes
        self._show()
        done.set_result(None)

    def _resume(self, done: Future[None]) -> None:
        self._shares_with, self.reserved_bytes = None, 0
        if isinstance(self._refusal, GpuTaken):
            self._refusal = self._paused_by = None
        self._show()
        done.set_result(None)

    def _end_grace(self) -> None:
        """While refusing: fail what runs when its time is up; once nothing runs, free the device."""
        if self._refusal is None:
            return
        is_over = self._clock() >= self._deadline
        for executor in list(self._executors):
            for sequence in list(executor.batch.running) if is_over else []:
                executor.fail(sequence, self._refusal)
            if not executor.batch.running:
                self._unload(executor)
        # A job must not find half a base model on the device; an engine that stops takes it along.
        is_loading = self._loading is not None and not isinstance(self._refusal, EngineStopping)
        if not self._executors and not is_loading:
            self._publish()
            for done in self._quiet:
                done.set_result(None)
            self._quiet.clear()

    def _fail_overdue(self) -> None:
        """Nobody waits for a switch for longer than was promised."""
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
            with_what = busy.base_model.name if busy.base_model else "nothing"
            error = BaseModelBusy(
                f"The base model {sequence.prompt.base_model.name!r} could not be loaded within "
                f"{seconds:.0f} s: the engine is busy with {with_what!r}.",
                retry_after_seconds=_BUSY_RETRY_AFTER_SECONDS,
            )
            self._fail_waiting([sequence], error)

    def _load_wanted(self) -> None:
        """Begin to load a base model that somebody waits for, if it has a place now."""
        switch = self._scheduler.next_switch() if self._refusal is None else None
        if switch is None:
            return
        for executor in [one for one in self._executors if one.batch is switch.leaving]:
            executor.close()
            self._executors.remove(executor)
        self._scheduler.begin_loading(switch)
        self._loading = LoadingBase(base_model=switch.wanted, since=datetime.now(UTC))
        self._publish()
        threading.Thread(target=self._load, args=(switch.wanted,), daemon=True, name="loading").start()

    def _load(self, wanted: BaseModelRef) -> None:
        """In a thread of its own."""
        try:
            runner = self._load_runner(wanted)
        except Exception as error:
            # The name of the exception is gone at the end of the block.
            reason = error
            self._commands.put(lambda: self._not_loaded(wanted, reason))
        else:
            self._commands.put(lambda: self._loaded(wanted, runner))

    def _loaded(self, base_model: BaseModelRef, runner: Runner) -> None:
        self._loading = None
        batch = self._scheduler.open(base_model, runner.capacity)
        self._executors.append(BatchExecutor(batch, runner, self._put))

    def _not_loaded(self, wanted: BaseModelRef, error: Exception) -> None:
        self._loading = None
        if self._scheduler.give_up_loading(lacks_memory=isinstance(error, OutOfMemory)):
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
            self._obey()
            # Who is refused meanwhile should not have to wait too.
            self._publish()
            if self._refusal is not None or any(map(self._scheduler.is_served, self._scheduler.waiting)):
                return

    def _seconds_to_wait(self) -> float | None:
        """Until the first one has waited too long."""
        if not self._scheduler.waiting:
            return None
        first = self._scheduler.waiting[0].queued_at
        return max(0.0, first + self._options.switch_wait_seconds - self._clock())

    def _unload(self, executor: BatchExecutor) -> None:
        executor.close()
        self._executors.remove(executor)
        self._scheduler.close(executor.batch)

    def _start_waiting(self) -> None:
        while (started := self._scheduler.start_next()) is not None:
            next(executor for executor in self._executors if executor.batch is started.batch).start(started)

    def _abandon(self) -> None:
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._put(sequence, failed(EngineFailed()))

    def _fail_waiting(self, sequences: list[Sequence], error: Exception) -> None:
        reply = failed(error)
        for sequence in sequences:
            self._put(sequence, reply)
            self._scheduler.remove(sequence)

    def _put(self, sequence: Sequence, reply: Reply) -> None:
        self._replies.append((sequence, reply))

    def _publish(self) -> None:
        """Hand out the replies, all of this step in one go, and show the state."""
        self._show()
        if self._replies:
            replies, self._replies = self._replies, []
            self._deliver(replies)

    def _show(self) -> None:
        batches, waiting = self._scheduler.batches, self._scheduler.waiting_counts()
        bases = [(batch, batch.slots.resident) for batch in batches]
        shown = (bases, waiting, self._loading, self._paused_by, self._shares_with)
        if shown == self._shown:
            return
        self._shown = shown
        before = self.state
        bits = {executor.batch: executor.runner.weight_bits for executor in self._executors}
        self.state = describe(self._scheduler, bits).model_copy(
            update={
                "loading": self._loading,
                "paused_by": self._paused_by,
                "shares_with": self._shares_with,
            }
        )
        if news(before) != news(self.state):
            self._options.on_change()
