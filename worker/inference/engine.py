"""The engine's loop: take requests, schedule them, run the model a step, hand out what was made.

Everything that changes state happens in the one thread that calls `run` or `step`; other threads leave
commands. Knows no torch and no HTTP: the model is behind Runner, the clients are behind `deliver`.
"""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import EngineFailed, GpuTaken, PromptTooLong, QueueFull, TunesmithError
from app.core.messages import BaseModelRef, EngineState, Reply
from worker.inference.failures import EngineStopping, failed
from worker.inference.scheduler import Capacity, Move, Prefill, Scheduler
from worker.inference.sequence import LoadedAdapter, Made, Sequence

_PAUSE_GRACE_SECONDS = 5.0
_PAUSED_RETRY_AFTER_SECONDS = 30

Deliver = Callable[[list[tuple[Sequence, Reply]]], None]


class Pending(Protocol):
    """A step that the device is busy with."""

    def made(self) -> list[Made]: ...


class Runner(Protocol):
    """A loaded base model. Any method may raise; what `read` raises concerns those prompts only."""

    capacity: Capacity
    # Whether `decode` comes back before the tokens are there.
    is_asynchronous: bool

    def load_adapter(self, slot: int, adapter: LoadedAdapter) -> None: ...
    def start(self, sequence: Sequence) -> None: ...
    def read(self, prefills: list[Prefill]) -> None: ...
    def decode(self, running: list[Sequence]) -> Pending: ...
    def move(self, move: Move) -> None: ...
    def free(self, row: int) -> None: ...
    def is_usable(self) -> bool: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class _InFlight:
    """A step whose tokens nobody has seen yet, and who was in which row when it began."""

    pending: Pending
    rows: list[tuple[int, Sequence]]


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
        self._in_flight: _InFlight | None = None
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
        """Do what was asked meanwhile, then begin a step of the model and hand out what the last one made.

        A device that works on its own is never left waiting: it computes the next tokens while those it has
        just made are turned into text. A sequence that turns out to be finished has then made one too many,
        which is dropped.
        """
        while not self._commands.empty():
            self._commands.get()()
        self._end_grace()
        self._switch_base_model()
        self._start_waiting()
        try:
            self._advance()
        finally:
            self._publish()

    @property
    def _has_work(self) -> bool:
        return bool(
            self._scheduler.running or self._scheduler.waiting or self._quiet or self._in_flight is not None
        )

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
        if sequence in self._scheduler.waiting or self._scheduler.is_running(sequence):
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
        self._in_flight = None
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

    def _advance(self) -> None:
        if any(sequence.needs_host for sequence in self._scheduler.running):
            self._collect()
        launched = self._launch()
        self._collect()
        self._in_flight = launched
        if self._runner is not None and not self._runner.is_asynchronous:
            self._collect()

    def _launch(self) -> _InFlight | None:
        """Read pieces of prompts, and begin a token for every sequence whose prompt is read."""
        self._read()
        running = list(self._scheduler.running)
        rows = [(sequence.row, sequence) for sequence in running if sequence.is_prefilled]
        if not rows:
            return None
        assert self._runner is not None
        try:
            return _InFlight(self._runner.decode(running), rows)
        except Exception as error:
            self._fail_after_error(running, error)
            return None

    def _read(self) -> None:
        prefills = self._scheduler.prefills()
        if not prefills:
            return
        assert self._runner is not None
        try:
            self._runner.read(prefills)
        except Exception as error:
            self._fail_after_error([prefill.sequence for prefill in prefills], error)
            return
        for prefill in prefills:
            prefill.sequence.prefilled_count += prefill.token_count
            self._scheduler.learn(prefill.sequence)

    def _collect(self) -> None:
        """Take what the step in flight has made; whoever left meanwhile gets nothing."""
        if self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        try:
            made = in_flight.pending.made()
        except Exception as error:
            self._fail_after_error(list(self._scheduler.running), error)
            return
        for row, sequence in in_flight.rows:
            if self._scheduler.is_running(sequence):
                self._take(sequence, made[row])

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
            self._scheduler.learn(sequence)
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
        was_running = self._scheduler.is_running(sequence)
        move = self._scheduler.remove(sequence)
        if self._runner is None or not was_running:
            return
        if move is not None:
            self._runner.move(move)
        self._runner.free(len(self._scheduler.running))

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
        raise PromptTooLong(
            f"The prompt has {tokens} tokens; at most {capacity.longest - 1} fit, and one to make.",
            param="prompt",
            hint=f"The base model's context is {capacity.context_length} tokens.",
        )
