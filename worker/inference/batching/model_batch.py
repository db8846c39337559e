"""The batch of one loaded base model: its rows, its pages, its adapter slots. Knows no torch and no queue.

Rows 0 to n-1 are always in use: when a sequence leaves, the last one moves into its row.
"""

from dataclasses import dataclass

from app.core.engine.messages import BaseModelRef
from worker.inference.adapters.slots import AdapterSlots, Pin
from worker.inference.batching.block_manager import PAGE_TOKENS, PageBook
from worker.inference.batching.sequence import Sequence


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
class Prefill:
    """The next piece of a prompt that the model should read."""

    sequence: Sequence
    token_count: int


@dataclass(frozen=True)
class Move:
    """A sequence that changes its row."""

    source: int
    target: int


class Lane:
    """One base model's batch. `running` is in row order."""

    def __init__(self, base_model: BaseModelRef, capacity: Capacity, *, adapter_slot_count: int) -> None:
        self.base_model = base_model
        self.base_key = base_model.key
        self.capacity = capacity
        self.slots = AdapterSlots(adapter_slot_count)
        self.running: list[Sequence] = []
        self._pages = PageBook(capacity.page_count)

    @property
    def is_full(self) -> bool:
        """Whether every row is in use."""
        return len(self.running) >= self.capacity.max_rows

    def start(self, sequence: Sequence) -> Pin | None:
        """Give a sequence its pages, a row and the slot of its adapter; None: there is no room now."""
        if self.is_full or not self.slots.has_room_for(sequence.adapter_id):
            return None
        # Longer than anything that fits: it starts without pages, and is refused with the numbers.
        if len(sequence.prompt.token_ids) < self.capacity.longest and not self._take_pages(sequence):
            return None
        pin = self.slots.pin(sequence.adapter_id)
        sequence.row, sequence.adapter_slot = len(self.running), pin.slot
        sequence.length_limit = self.capacity.longest
        self.running.append(sequence)
        return pin

    def is_running(self, sequence: Sequence) -> bool:
        """Whether it has a row now."""
        return 0 <= sequence.row < len(self.running) and self.running[sequence.row] is sequence

    def remove(self, sequence: Sequence) -> Move | None:
        """Take a sequence out of the batch; answers who moves into its row."""
        self.slots.unpin(sequence.adapter_id)
        self._pages.release(sequence.pages)
        last = self.running.pop()
        if last is sequence:
            return None
        move = Move(source=last.row, target=sequence.row)
        self.running[sequence.row] = last
        last.row = sequence.row
        return move

    def prefills(self) -> list[Prefill]:
        """Pieces of prompts to read in this step, in row order, so long as the budget lasts.

        The last token of a prompt is not read so: it goes through the decode step that makes the first token.
        """
        pieces = []
        token_budget = self.capacity.prefill_tokens_per_step
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

    def _take_pages(self, sequence: Sequence) -> bool:
        sequence.length_limit = self.capacity.longest
        owned = self._pages.take(sequence.adapter_id, sequence.prompt.token_ids, sequence.max_length)
        if owned is None:
            return False
        sequence.pages, sequence.prefilled_count = owned.pages, owned.known_tokens
        return True
