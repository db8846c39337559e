"""The batch of one loaded base model: its rows, cache blocks and adapter slots. Knows no torch and no queue.

The n running sequences always occupy rows 0 to n-1: when one leaves, the last one moves into its row.
"""

from dataclasses import dataclass

from app.core.engine.messages import BaseModelRef
from worker.inference.adapters.slots import AdapterSlots, Pin, SlotSwap
from worker.inference.batching.block_manager import BLOCK_TOKENS, BlockManager
from worker.inference.batching.sequence import Sequence


@dataclass(frozen=True)
class Capacity:
    """How much the loaded base model can process at once."""

    max_rows: int
    # Blocks of the KV cache, with block 0, which is never allocated.
    block_count: int
    context_length: int
    # Chunked prefill: decode steps run between the chunks of a long prompt, so that no stream stalls for it.
    prefill_tokens_per_step: int = 512
    # The same for prompts whose log-probabilities are wanted: each token has the logits of a vocabulary.
    scored_tokens_per_step: int = 256
    # Whether the blocks are those of a paged cache; else they only count the memory of separate caches.
    shares_prefixes: bool = True
    # Positions that a verifying step can compute; 0: the model has none. Drafted ids must be below the other.
    verified_positions: int = 0
    draftable_ids: int = 0

    @property
    def max_length(self) -> int:
        """Maximum tokens of one sequence, prompt and answer together."""
        return min(self.context_length, (self.block_count - 1) * BLOCK_TOKENS)


@dataclass(frozen=True)
class Prefill:
    """The next chunk of a prompt to read: `token_count` tokens after those already read."""

    sequence: Sequence
    token_count: int


@dataclass(frozen=True)
class Move:
    """The sequence in row `source` moves to row `target`."""

    source: int
    target: int


class ModelBatch:
    """The running sequences of one base model, in row order."""

    def __init__(self, base_model: BaseModelRef, capacity: Capacity, *, adapter_slot_count: int) -> None:
        self.base_model = base_model
        self.base_key = base_model.key
        self.capacity = capacity
        self.slots = AdapterSlots(adapter_slot_count)
        self.running: list[Sequence] = []
        self._block_manager = BlockManager(capacity.block_count)

    @property
    def is_full(self) -> bool:
        """Whether every row is in use."""
        return len(self.running) >= self.capacity.max_rows

    @property
    def used_blocks(self) -> int:
        """How many blocks of the KV cache the running sequences use."""
        return self._block_manager.used_count

    def start(self, sequence: Sequence) -> Pin | None:
        """Allocate blocks, a row and an adapter slot for a sequence; None where one is lacking."""
        if self.is_full or not self.slots.can_pin(sequence.adapter_id):
            return None
        # A prompt that can never fit starts without blocks; the executor then refuses it with the numbers.
        if sequence.fits(self.capacity.max_length) and not self._allocate_blocks(sequence):
            return None
        pin = self.slots.pin(sequence.adapter_id)
        sequence.row, sequence.adapter_slot = len(self.running), pin.slot
        sequence.length_limit = self.capacity.max_length
        self.running.append(sequence)
        return pin

    def is_running(self, sequence: Sequence) -> bool:
        """Whether the sequence has a row now."""
        return 0 <= sequence.row < len(self.running) and self.running[sequence.row] is sequence

    def remove(self, sequence: Sequence) -> Move | None:
        """Remove a sequence from the batch. Returns the move that fills its row, if one is needed."""
        self.slots.unpin(sequence.adapter_id)
        self._block_manager.release(sequence.blocks)
        last = self.running.pop()
        if last is sequence:
            return None
        move = Move(source=last.row, target=sequence.row)
        self.running[sequence.row] = last
        last.row = sequence.row
        return move

    def swap_slots(self, swap: SlotSwap) -> None:
        """Record that two slots' adapters have changed places: those who use one follow it."""
        self.slots.swap(swap)
        for sequence in self.running:
            if sequence.adapter_slot == swap.source:
                sequence.adapter_slot = swap.target

    def prefills(self) -> list[Prefill]:
        """Chunks of prompts to read in this step, in row order, up to `prefill_tokens_per_step` tokens.

        The last token of a prompt is left out: a decode step reads it, unless the runner reads it with the
        others. Of a text whose embedding is wanted all tokens are read here. The tokens that a decode step
        would read count as well, so that a pass has room for them.
        """
        chunks: list[Prefill] = []
        scored_budget = min(self.capacity.scored_tokens_per_step, self.capacity.prefill_tokens_per_step)
        token_budget = self.capacity.prefill_tokens_per_step - sum(one.is_prefilled for one in self.running)
        # Many rows never keep prompts from being read.
        token_budget = max(token_budget, self.capacity.prefill_tokens_per_step // 2, 1)
        for sequence in self.running:
            left = sequence.prefill_length - sequence.prefilled_count
            is_scored = sequence.prompt.is_scored
            ends = sequence.prompt.makes_tokens and not is_scored
            count = min(left, scored_budget if is_scored else left, token_budget)
            # The last token of a prompt has its place in the same pass.
            if ends and count == left == token_budget and (chunks or count > 1):
                count -= 1
            if count > 0:
                chunks.append(Prefill(sequence, count))
                token_budget -= count + (ends and count == left)
                scored_budget -= count if is_scored else 0
        return chunks

    def commit(self, sequence: Sequence) -> None:
        """Let other sequences share the full blocks that the model has read of this one."""
        cached = [*sequence.prompt.token_ids, *sequence.token_ids][: -1 if sequence.token_ids else None]
        if sequence.is_prefilled and self._shares_prefix(sequence):
            self._block_manager.commit(sequence.adapter_id, cached, sequence.blocks)

    def _allocate_blocks(self, sequence: Sequence) -> bool:
        sequence.length_limit = self.capacity.max_length
        shared = sequence.prompt.token_ids if self._shares_prefix(sequence) else ()
        allocation = self._block_manager.allocate(sequence.adapter_id, shared, sequence.max_length)
        if allocation is None:
            return False
        sequence.blocks, sequence.prefilled_count = allocation.blocks, allocation.cached_tokens
        return True

    def _shares_prefix(self, sequence: Sequence) -> bool:
        """Whether blocks may be shared: they lack the states that embeddings and scores are made of."""
        prompt = sequence.prompt
        return self.capacity.shares_prefixes and not (prompt.embeds or prompt.is_scored)
