"""Reads prompts in chunks, and with them the last tokens of rows that would need a decode step.

Shape letters: N tokens of a pass, B rows of a step, V vocabulary, H hidden size.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch

from worker.inference.batching.model_batch import Prefill
from worker.inference.batching.prompt_scores import ChunkRead
from worker.inference.batching.sequence import Sequence
from worker.inference.model.attention import Chunk
from worker.inference.model.passes.forward import ChunkTokens
from worker.inference.model.passes.prefill import PrefillForward
from worker.inference.model.rows import Rows
from worker.inference.sampling.sampler import score_tokens
from worker.models.device import on_device

# A token of a row takes a tile of attention for prompts, which reads its keys one after another: rows with
# more keys, or more of all together, are left to a decode step. The numbers are estimates.
_MAX_KEYS_OF_ROW = 4096
_MAX_KEYS = 1 << 16


@dataclass(frozen=True)
class _LastStates:
    """Last hidden states [N, H] of a pass, and where those of the last tokens of some sequences are."""

    states_NH: torch.Tensor
    places: dict[Sequence, int]


class PromptReader:
    """Reads chunks of prompts by one pass, or by two where some need logits. Not thread-safe."""

    def __init__(self, prefilling: PrefillForward, rows: Rows, *, has_logits_alone: bool) -> None:
        """`has_logits_alone`: whether logits can be computed of a pass's last hidden states."""
        self._prefilling = prefilling
        self._rows = rows
        self._has_logits_alone = has_logits_alone
        self._last: _LastStates | None = None

    def read(self, prefills: list[Prefill], ready: list[Sequence]) -> list[ChunkRead]:
        """Read the chunks. Where no decode step is needed then, `take_last_states` has what it would compute.

        `ready`: all sequences whose prompts were read before, or none of them.
        """
        self.forget_last_states()
        for one in prefills:
            self._rows.set(one.sequence, one.sequence.prefilled_count + one.token_count)
        self._rows.write()
        read: dict[int, ChunkRead] = {}
        scored = [one for one in prefills if one.sequence.prompt.is_scored]
        if scored:
            read |= self._read_scored(scored)
        others = [one for one in prefills if not one.sequence.prompt.is_scored]
        if others:
            ending = [one.sequence for one in others if _ends(one)]
            count = sum(one.token_count for one in others)
            reads_ends = (
                self._has_logits_alone
                and not scored
                and self._can_read(ready)
                and self._prefilling.has_room(count, len(ending) + len(ready))
            )
            read |= self._read(others, *((ending, ready) if reads_ends else ([], [])))
        return [read[one.sequence.row] for one in prefills]

    def _can_read(self, ready: list[Sequence]) -> bool:
        """Whether a pass reads their last tokens, and in less time than a decode step."""
        lengths = [one.length for one in ready]
        is_short = max(lengths, default=0) <= _MAX_KEYS_OF_ROW and sum(lengths) <= _MAX_KEYS
        return not ready or (is_short and self._prefilling.reads_unknown)

    def take_last_states(self, running: list[Sequence]) -> torch.Tensor | None:
        """Last hidden states [B, H] of the last tokens of the first B sequences, where `read` read them all.

        B: up to the last sequence whose prompt is read. What stands for one whose prompt is not is undefined.
        """
        last = self._last
        self.forget_last_states()
        rows = [one.row for one in running if one.is_prefilled]
        if last is None or not rows or any(one.is_prefilled and one not in last.places for one in running):
            return None
        places_B = torch.tensor([last.places.get(one, 0) for one in running[: rows[-1] + 1]])
        return last.states_NH[on_device(places_B, self._rows.device)]

    def forget_last_states(self) -> None:
        """Forget the states of the last pass: the rows advance without them."""
        self._last = None

    def _read(
        self, prefills: list[Prefill], ending: list[Sequence], ready: list[Sequence]
    ) -> dict[int, ChunkRead]:
        """What chunks give by row. The last tokens of `ending` and of `ready` are read with them."""
        read_here = [_chunk_tokens(one, has_end=one.sequence in ending) for one in prefills]
        states_NH = self._prefilling.states(read_here + [ChunkTokens.of_last(one) for one in ready])
        chunks = [one.chunk for one in read_here]
        ends = list(accumulate(chunk.count for chunk in chunks))
        last = {
            one.sequence: end - 1 for one, end in zip(prefills, ends, strict=True) if one.sequence in ending
        }
        last |= {one: place for place, one in enumerate(ready, start=ends[-1])}
        self._last = _LastStates(states_NH, last)
        read = {}
        for prefill, chunk, end in zip(prefills, chunks, ends, strict=True):
            embeds = prefill.sequence.prompt.embeds
            sum_H = states_NH[end - chunk.count : end].sum(0, dtype=torch.float32) if embeds else None
            read[chunk.row] = ChunkRead(hidden_sum=sum_H)
        return read

    def _read_scored(self, prefills: list[Prefill]) -> dict[int, ChunkRead]:
        """The log-probabilities of the tokens after those of the chunks, by row."""
        read_here = [_chunk_tokens(one, has_end=False) for one in prefills]
        logits_NV = self._prefilling.logits(read_here)
        chunks = [one.chunk for one in read_here]
        split = logits_NV.split([chunk.count for chunk in chunks])
        read = {}
        for prefill, chunk, chunk_logits_NV in zip(prefills, chunks, split, strict=True):
            prompt = prefill.sequence.prompt
            targets_N = torch.tensor(prompt.token_ids[chunk.start + 1 : chunk.end + 1])
            targets_N = on_device(targets_N, self._rows.device)
            scores = score_tokens(chunk_logits_NV, targets_N, prompt.prompt_logprobs or 0)
            read[chunk.row] = ChunkRead(scores=scores)
        return read


def _ends(prefill: Prefill) -> bool:
    """Whether a sequence makes its first token once this chunk and its prompt's last token are read."""
    sequence = prefill.sequence
    is_whole = sequence.prefilled_count + prefill.token_count == sequence.prefill_length
    return is_whole and sequence.prompt.makes_tokens


def _chunk_tokens(prefill: Prefill, *, has_end: bool) -> ChunkTokens:
    """The tokens of a chunk, with the last one of its prompt where `has_end`."""
    sequence = prefill.sequence
    chunk = Chunk(sequence.row, sequence.prefilled_count, prefill.token_count + has_end)
    return ChunkTokens(chunk, sequence.prompt.token_ids[chunk.start : chunk.end], sequence.adapter_slot)
