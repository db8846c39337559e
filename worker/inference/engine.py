"""The engine's loop: take requests, schedule them, run the model a step, hand out what was made.

Everything that changes state happens in the one thread that calls `run` or `step`; other threads leave
commands. Knows no torch and no HTTP: the model is behind Runner, the clients are behind `deliver`.
"""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from app.core.errors import EngineFailed, GpuTaken, InvalidRequest, QueueFull, TunesmithError
from app.core.messages import BaseModelRef, EngineState, Reply
from worker.inference.failures import EngineStopping, failed
from worker.inference.scheduler import Capacity, Move, Scheduler
from worker.inference.sequence import LoadedAdapter, Made, Sequence

# A long prompt is read in pieces of this size between decode steps, so that no stream waits for all of it.
_PREFILL_TOKENS_PER_STEP = 512
_PAUSE_GRACE_SECONDS = 5.0
_PAUSED_RETRY_AFTER_SECONDS = 30

Deliver = Callable[[list[tuple[Sequence, Reply]]], None]


class Runner(Protocol):
    """A loaded base model. Any method may raise; what `prefill` raises concerns one sequence only."""

    capacity: Capacity

    def load_adapter(self, slot: int, adapter: LoadedAdapter) -> None: ...
    def start(self, sequence: Sequence) -> None: ...
    def prefill(self, sequence: Sequence, token_count: int, running: list[Sequence]) -> Made | None: ...
    def decode(self, running: list[Sequence]) -> list[Made]: ...
    def move(self, move: Move, sequence: Sequence) -> None: ...
    def is_usable(self) -> bool: ...
    def close(self) -> None: ...


class RunnerBroken(Exception):
    """The device does not answer any more; only a new process helps."""


class Engine:
    """One scheduler, at most one loaded base model, any number of clients."""

    def __init__(
        self,
        load_runner: Callable[[BaseModelRef], Runner],
        deliver: Deliver,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load_runner = load_runner
        self._deliver = deliver
        self._scheduler = scheduler
        self._clock = clock
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._replies: list[tuple[Sequence, Reply]] = []
        self._runner: Runner | None = None
        # Why new work is refused, and until when what runs may go on; None while the engine serves.
        self._refusal: TunesmithError | None = None
        self._deadline = 0.0
        self._quiet: list[Future[None]] = []
        self.state = EngineState()

    @property
    def running_count(self) -> int:
        """Sequences in the batch."""
        return len(self._scheduler.running)

    @property
    def waiting_count(self) -> int:
        """Sequences in the queue."""
        return len(self._scheduler.waiting)

    def submit(self, sequence: Sequence) -> None:
        """Answer this sequence; the replies go to `deliver`. From any thread, as the next four."""
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

    def resume(self) -> Future[None]:
        """Serve again after a pause."""
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
        """Do what was asked meanwhile, then make a token for every sequence whose prompt is read."""
        while not self._commands.empty():
            self._commands.get()()
        self._end_grace()
        self._switch_base_model()
        self._start_waiting()
        try:
            self._prefill()
            self._decode()
        finally:
            self._publish()

    @property
    def _has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting or self._quiet)

    def _later(self, command: Callable[[Future[None]], None]) -> Future[None]:
        done: Future[None] = Future()
        self._commands.put(lambda: command(done))
        return done

    def _submit(self, sequence: Sequence) -> None:
        if self._refusal is not None:
            self._replies.append((sequence, failed(self._refusal)))
            return
        try:
            self._scheduler.add(sequence)
        except QueueFull as error:
            self._replies.append((sequence, failed(error)))

    def _cancel(self, sequence: Sequence) -> None:
        if sequence in self._scheduler.waiting or sequence in self._scheduler.running:
            self._remove(sequence)

    def _refuse(
        self, refusal: TunesmithError, grace_seconds: float, done: Future[None], paused_by: str | None = None
    ) -> None:
        self._refusal, self._deadline = refusal, self._clock() + grace_seconds
        self.state = self.state.model_copy(update={"paused_by": paused_by})
        self._quiet.append(done)
        for sequence in list(self._scheduler.waiting):
            self._fail(sequence, refusal)

    def _resume(self, done: Future[None]) -> None:
        if isinstance(self._refusal, GpuTaken):
            self._refusal = None
            self.state = self.state.model_copy(update={"paused_by": None})
        done.set_result(None)

    def _end_grace(self) -> None:
        """While refusing: fail what runs when its time is up; once nothing runs, free the device."""
        if self._refusal is None:
            return
        if self._clock() >= self._deadline:
            for sequence in list(self._scheduler.running):
                self._fail(sequence, self._refusal)
        if not self._scheduler.running:
            self._unload()
            self._publish()
            for done in self._quiet:
                done.set_result(None)
            self._quiet.clear()

    def _switch_base_model(self) -> None:
        wanted = self._scheduler.wanted_base()
        if wanted is None:
            return
        self._unload()
        try:
            self._runner = self._load_runner(wanted)
        except Exception as error:
            for sequence in list(self._scheduler.waiting):
                if sequence.prompt.base_model == wanted:
                    self._fail(sequence, error)
            return
        self._scheduler.serve(wanted, self._runner.capacity)
        self._publish()

    def _unload(self) -> None:
        if self._runner is not None:
            self._runner.close()
        self._runner = None
        self._scheduler.serve(None, None)

    def _start_waiting(self) -> None:
        while (started := self._scheduler.start_next()) is not None:
            sequence, adapter = started.sequence, started.sequence.prompt.adapter
            assert self._runner is not None
            try:
                _check_length(sequence, self._runner.capacity)
                if started.pin.must_load and adapter is not None:
                    self._runner.load_adapter(started.pin.slot, adapter)
                self._runner.start(sequence)
            except Exception as error:
                self._fail(sequence, error)
                if started.pin.must_load and adapter is not None:
                    self._scheduler.slots.forget(adapter.id)
                continue
            sequence.start()

    def _prefill(self) -> None:
        for piece in self._scheduler.prefills(_PREFILL_TOKENS_PER_STEP):
            assert self._runner is not None
            sequence = piece.sequence
            try:
                made = self._runner.prefill(sequence, piece.token_count, self._scheduler.running)
            except Exception as error:
                self._fail_after_error([sequence], error)
                continue
            sequence.prefilled_count += piece.token_count
            if made is not None:
                self._take(sequence, made)

    def _decode(self) -> None:
        running = list(self._scheduler.running)
        # A first token that was just made came out of the prefill; its row decodes in this step already.
        ready = [sequence for sequence in running if sequence.is_prefilled]
        if not ready:
            return
        assert self._runner is not None
        try:
            made = self._runner.decode(running)
        except Exception as error:
            self._fail_after_error(running, error)
            return
        taken = [(sequence, made[sequence.row]) for sequence in ready]
        for sequence, token in taken:
            self._take(sequence, token)

    def _take(self, sequence: Sequence, made: Made) -> None:
        try:
            delta = sequence.add_token(made)
        except Exception as error:
            self._fail(sequence, error)
            return
        if delta is not None:
            self._replies.append((sequence, delta))
        if sequence.finish_reason is not None:
            self._replies.append((sequence, sequence.finished()))
            self._remove(sequence)

    def _fail_after_error(self, sequences: list[Sequence], error: Exception) -> None:
        """Fail these and go on, if the device can."""
        assert self._runner is not None
        for sequence in sequences:
            self._fail(sequence, error)
        if not self._runner.is_usable():
            self._abandon(RunnerBroken())

    def _abandon(self, error: RunnerBroken) -> None:
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._replies.append((sequence, failed(EngineFailed())))
        raise error

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._replies.append((sequence, failed(error)))
        self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        move = self._scheduler.remove(sequence)
        if move is not None and self._runner is not None:
            self._runner.move(move, self._scheduler.running[move.target])

    def _publish(self) -> None:
        """Hand out the replies, all of this step in one go, and show the state."""
        base_model, adapters = self._scheduler.base_model, self._scheduler.slots.resident
        if (base_model, adapters) != (self.state.base_model, self.state.adapters):
            self.state = self.state.model_copy(update={"base_model": base_model, "adapters": adapters})
        if self._replies:
            replies, self._replies = self._replies, []
            self._deliver(replies)


def _check_length(sequence: Sequence, capacity: Capacity) -> None:
    tokens = len(sequence.prompt.token_ids)
    if tokens >= capacity.longest:
        raise InvalidRequest(
            f"The prompt has {tokens} tokens; at most {capacity.longest - 1} fit, and one to make.",
            param="prompt",
            hint=f"The base model's context is {capacity.context_length} tokens.",
        )
