"""One loaded base model at work: a step reads pieces of prompts and makes a token for every sequence.

A device that works on its own is never left waiting: it computes the next tokens while those it has just made
are turned into text. A sequence that turns out to be finished has then made one too many, which is dropped.
Knows no torch: the model is behind Runner.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.core.engine.messages import Reply
from app.core.errors.engine import PromptTooLong
from worker.inference.batching.model_batch import Capacity, Lane, Move, Prefill
from worker.inference.batching.scheduler import Started
from worker.inference.batching.sequence import LoadedAdapter, Made, Sequence
from worker.inference.failures import failed

Put = Callable[[Sequence, Reply], None]


class Pending(Protocol):
    """A step that the device is busy with."""

    def made(self) -> list[Made]: ...


class Runner(Protocol):
    """A loaded base model. Any method may raise; what `read` raises concerns those prompts only."""

    capacity: Capacity
    # Of a weight of its large layers.
    weight_bits: int
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


class Batch:
    """A lane and the model that runs it. Replies go to `put`."""

    def __init__(self, lane: Lane, runner: Runner, put: Put) -> None:
        self.lane = lane
        self.runner = runner
        self._put = put
        self._in_flight: _InFlight | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.lane.running) or self._in_flight is not None

    def start(self, started: Started) -> None:
        """A sequence was given a row: tell the model."""
        sequence, adapter = started.sequence, started.sequence.prompt.adapter
        try:
            _check_length(sequence, self.lane.capacity)
            if started.pin.must_load and adapter is not None:
                self.runner.load_adapter(started.pin.slot, adapter)
            self.runner.start(sequence)
        except Exception as error:
            self.fail(sequence, error)
            if started.pin.must_load and adapter is not None:
                self.lane.slots.forget(adapter.id)
            return
        sequence.start()

    def step(self) -> None:
        """Begin a step of the model and hand out what the last one made. Raises RunnerBroken."""
        if any(sequence.needs_host for sequence in self.lane.running):
            self._collect()
        launched = self._launch()
        self._collect()
        self._in_flight = launched
        if not self.runner.is_asynchronous:
            self._collect()

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """There is no more of this answer, for this reason."""
        self._put(sequence, failed(error))
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Nobody wants the rest of this answer."""
        move = self.lane.remove(sequence)
        if move is not None:
            self.runner.move(move)
        self.runner.free(len(self.lane.running))

    def close(self) -> None:
        """Give the device's memory back."""
        self._in_flight = None
        self.runner.close()

    def _launch(self) -> _InFlight | None:
        """Read pieces of prompts, and begin a token for every sequence whose prompt is read."""
        self._read()
        running = list(self.lane.running)
        rows = [(sequence.row, sequence) for sequence in running if sequence.is_prefilled]
        if not rows:
            return None
        try:
            return _InFlight(self.runner.decode(running), rows)
        except Exception as error:
            self._fail_after_error(running, error)
            return None

    def _read(self) -> None:
        prefills = self.lane.prefills()
        if not prefills:
            return
        try:
            self.runner.read(prefills)
        except Exception as error:
            self._fail_after_error([prefill.sequence for prefill in prefills], error)
            return
        for prefill in prefills:
            prefill.sequence.prefilled_count += prefill.token_count
            self.lane.learn(prefill.sequence)

    def _collect(self) -> None:
        """Take what the step in flight has made; whoever left meanwhile gets nothing."""
        if self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        try:
            made = in_flight.pending.made()
        except Exception as error:
            self._fail_after_error(list(self.lane.running), error)
            return
        for row, sequence in in_flight.rows:
            if self.lane.is_running(sequence):
                self._take(sequence, made[row])

    def _take(self, sequence: Sequence, made: Made) -> None:
        try:
            delta = sequence.add_token(made)
        except Exception as error:
            self.fail(sequence, error)
            return
        if delta is not None:
            self._put(sequence, delta)
        if sequence.finish_reason is not None:
            self._put(sequence, sequence.finished())
            self.lane.learn(sequence)
            self.remove(sequence)

    def _fail_after_error(self, sequences: list[Sequence], error: Exception) -> None:
        """Fail these and go on, if the device can. Raises RunnerBroken."""
        if not self.runner.is_usable():
            raise RunnerBroken from error
        for sequence in sequences:
            self.fail(sequence, error)


def _check_length(sequence: Sequence, capacity: Capacity) -> None:
    tokens = len(sequence.prompt.token_ids)
    if tokens >= capacity.longest:
        raise PromptTooLong(
            f"The prompt has {tokens} tokens; at most {capacity.longest - 1} fit, and one to make.",
            param="prompt",
            hint=f"The base model's context is {capacity.context_length} tokens.",
        )
