"""Who runs, who waits, and in which row of the batch. Knows no torch and no clock.

Rows 0 to n-1 of the batch are always in use: when a sequence leaves, the last one moves into its row. One
base model is served at a time; a request for another one waits until the batch has drained.
"""

from collections import deque
from dataclasses import dataclass

from app.core.errors import QueueFull
from app.core.messages import BaseModelRef
from worker.inference.adapter_slots import AdapterSlots, Pin
from worker.inference.pages import PAGE_TOKENS, PageBook
from worker.inference.sequence import Sequence

# So often may others start before the one at the head of the queue, which waits for memory, for an adapter
# slot or for another base model. It bounds both the waiting and the switching to and fro.
_MAX_PASSED_OVER = 8


@dataclass(frozen=True)
class Capacity:
    """What fits the loaded base model."""

    max_rows: int
    page_count: int
    context_length: int
    # A long prompt is read in pieces between decode steps, so that no stream waits for all of it.
    prefill_tokens_per_step: int = 512

    @property
    def longest(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""
        return min(self.context_length, (self.page_count - 1) * PAGE_TOKENS)


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
        self._pages = PageBook(0)
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
        self._pages = PageBook(capacity.page_count if capacity else 0)
        self.slots.clear()

    def start_next(self) -> Started | None:
        """Give the next sequence that fits a row, in the order of the queue as far as that goes."""
        if self._capacity is None or len(self.running) >= self._capacity.max_rows:
            return None
        for sequence in self.waiting:
            head = self.waiting[0]
            if self._take_pages(sequence):
                head.passed_over_count += sequence is not head
                return self._start(sequence)
            if head.passed_over_count >= _MAX_PASSED_OVER:
                return None
        return None

    def is_running(self, sequence: Sequence) -> bool:
        """Whether it has a row now."""
        return 0 <= sequence.row < len(self.running) and self.running[sequence.row] is sequence

    def prefills(self) -> list[Prefill]:
        """Pieces of prompts to read in this step, in row order, so long as the budget lasts.

        The last token of a prompt is not read so: it goes through the decode step that makes the first token.
        """
        pieces = []
        token_budget = self._capacity.prefill_tokens_per_step if self._capacity else 0
        for sequence in self.running:
            left = len(sequence.prompt.token_ids) - 1 - sequence.prefilled_count
            if left > 0 and token_budget > 0:
                pieces.append(Prefill(sequence, min(left, token_budget)))
                token_budget -= pieces[-1].token_count
        return pieces

    def learn(self, sequence: Sequence) -> None:
        """What the model has read of a sequence may be shared with others from now on."""
        known = [*sequence.prompt.token_ids, *sequence.token_ids][: -1 if sequence.token_ids else None]
        if sequence.is_prefilled:
            self._pages.learn(sequence.adapter_id, known, sequence.pages)
        else:
            self._pages.learn(sequence.adapter_id, known[: sequence.prefilled_count], sequence.pages)

    def remove(self, sequence: Sequence) -> Move | None:
        """Take a sequence out of the queue or the batch; answers who moves into its row."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return None
        self.slots.unpin(sequence.adapter_id)
        self._pages.release(sequence.pages)
        last = self.running.pop()
        if last is sequence:
            return None
        move = Move(source=last.row, target=sequence.row)
        self.running[sequence.row] = last
        last.row = sequence.row
        return move

    def _take_pages(self, sequence: Sequence) -> bool:
        """Give a sequence its pages, if it can start now."""
        assert self._capacity is not None
        if sequence.prompt.base_model != self.base_model or not self.slots.has_room_for(sequence.adapter_id):
            return False
        prompt_ids = sequence.prompt.token_ids
        if len(prompt_ids) >= self._capacity.longest:
            return (
                True  # longer than anything that fits: it starts, and the engine refuses it with the numbers
            )
        longest = min(sequence.max_length, self._capacity.longest)
        owned = self._pages.take(sequence.adapter_id, prompt_ids, longest)
        if owned is None:
            return False
        sequence.pages, sequence.prefilled_count = owned.pages, owned.known_tokens
        return True

    def _start(self, sequence: Sequence) -> Started:
        assert self._capacity is not None
        self.waiting.remove(sequence)
        pin = self.slots.pin(sequence.adapter_id)
        sequence.row, sequence.adapter_slot = len(self.running), pin.slot
        sequence.length_limit = self._capacity.longest
        self.running.append(sequence)
        return Started(sequence, pin)
