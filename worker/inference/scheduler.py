"""Who runs, who waits, and in which row of the batch. Knows no torch and no clock.

Rows 0 to n-1 of the batch are always in use: when a sequence leaves, the last one moves into its row. One
base model is served at a time; a request for another one waits until the batch has drained.
"""

from collections import deque
from dataclasses import dataclass

from app.core.errors import QueueFull
from app.core.messages import BaseModelRef
from worker.inference.adapter_slots import AdapterSlots, Pin
from worker.inference.sequence import Sequence

# So often may others start before the one at the head of the queue, which waits for memory, for an adapter
# slot or for another base model. It bounds both the waiting and the switching to and fro.
_MAX_PASSED_OVER = 8


@dataclass(frozen=True)
class Capacity:
    """What fits the loaded base model. Every row takes as many tokens as the longest."""

    max_rows: int
    max_tokens: int
    context_length: int

    @property
    def longest(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""
        return min(self.context_length, self.max_tokens)

    def fits(self, row_count: int, longest: int) -> bool:
        """Whether so many rows of this length fit."""
        return row_count <= self.max_rows and row_count * longest <= self.max_tokens


@dataclass(frozen=True)
class Started:
    """A sequence that was given a row, and the slot of its adapter."""

    sequence: Sequence
    pin: Pin


@dataclass(frozen=True)
class Prefill:
    """The next piece of a prompt that the model should read."""

    sequence: Sequence
    token_count: int


@dataclass(frozen=True)
class Move:
    """A sequence that changes its row."""

    source: int
    target: int


class Scheduler:
    """The queue and the batch. `running` is in row order."""

    def __init__(self, *, max_waiting: int, adapter_slot_count: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.base_model: BaseModelRef | None = None
        self.slots = AdapterSlots(adapter_slot_count)
        self._capacity: Capacity | None = None
        self._max_waiting = max_waiting

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue. Raises QueueFull."""
        if len(self.waiting) >= self._max_waiting:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting already.", hint="Try again in a few seconds."
            )
        self.waiting.append(sequence)

    def wanted_base(self) -> BaseModelRef | None:
        """The base model to load now: the head of the queue needs it and nothing runs on the present one."""
        if self.running or not self.waiting:
            return None
        wanted = self.waiting[0].prompt.base_model
        return wanted if wanted != self.base_model else None

    def serve(self, base_model: BaseModelRef | None, capacity: Capacity | None) -> None:
        """From now on this base model is loaded, without any adapter yet; None: nothing is."""
        assert not self.running
        self.base_model, self._capacity = base_model, capacity
        self.slots.clear()

    def start_next(self) -> Started | None:
        """Give the next sequence that fits a row, in the order of the queue as far as that goes."""
        if self._capacity is None or len(self.running) >= self._capacity.max_rows:
            return None
        for sequence in self.waiting:
            head = self.waiting[0]
            if self._fits(sequence):
                head.passed_over_count += sequence is not head
                return self._start(sequence)
            if head.passed_over_count >= _MAX_PASSED_OVER:
                return None
        return None

    def prefills(self, token_budget: int) -> list[Prefill]:
        """Pieces of prompts to read in this step, in row order, so long as the budget lasts."""
        pieces = []
        for sequence in self.running:
            left = len(sequence.prompt.token_ids) - sequence.prefilled_count
            if left and token_budget > 0:
                pieces.append(Prefill(sequence, min(left, token_budget)))
                token_budget -= pieces[-1].token_count
        return pieces

    def remove(self, sequence: Sequence) -> Move | None:
        """Take a sequence out of the queue or the batch; answers who moves into its row."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return None
        self.slots.unpin(sequence.adapter_id)
        last = self.running.pop()
        if last is sequence:
            return None
        move = Move(source=last.row, target=sequence.row)
        self.running[sequence.row] = last
        last.row = sequence.row
        return move

    def _fits(self, sequence: Sequence) -> bool:
        assert self._capacity is not None
        if sequence.prompt.base_model != self.base_model or not self.slots.has_room_for(sequence.adapter_id):
            return False
        # A prompt longer than anything that fits starts too: the engine then refuses it with the numbers.
        lengths = [min(one.max_length, self._capacity.longest) for one in (*self.running, sequence)]
        return self._capacity.fits(len(lengths), max(lengths))

    def _start(self, sequence: Sequence) -> Started:
        assert self._capacity is not None
        self.waiting.remove(sequence)
        pin = self.slots.pin(sequence.adapter_id)
        sequence.row, sequence.adapter_slot = len(self.running), pin.slot
        sequence.length_limit = self._capacity.longest
        self.running.append(sequence)
        return Started(sequence, pin)
