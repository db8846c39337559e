"""A runner without a model, sequences without a tokenizer, and a client that records its replies."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from app.core.engine.messages import BaseModelRef, Failed, Finished, Reply, TokenDelta
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from worker.inference.adapters.slots import SlotSwap
from worker.inference.batching.embedding import HiddenSum
from worker.inference.batching.model_batch import Capacity, Move, Prefill
from worker.inference.batching.prompt import AdapterHandle, Prompt
from worker.inference.batching.prompt_scores import ChunkRead
from worker.inference.batching.sequence import SampledToken, Sequence

END = 0


@dataclass(frozen=True)
class FakeAdapter:
    id: str


def make_base(name: str = "base") -> BaseModelRef:
    return BaseModelRef(name=name, quantization=QuantizationSpec(load_in_4bit=False))


def make_capacity(*, max_rows: int = 4, block_count: int = 65, context_length: int = 100) -> Capacity:
    return Capacity(max_rows, block_count, context_length)


def make_sequence(
    *,
    prompt_length: int = 1,
    token_ids: list[int] | None = None,
    base: str = "base",
    adapter: str | None = None,
    max_new_tokens: int = 3,
    stop: list[str] | None = None,
    embeds: bool = False,
) -> Sequence:
    """A sequence in which token n decodes to the n-th letter, and token 0 ends the answer."""
    prompt = Prompt(
        base_model=make_base(base),
        adapter=FakeAdapter(adapter) if adapter else None,
        token_ids=token_ids or [1] * prompt_length,
        sampling=Sampling(max_new_tokens=max_new_tokens, stop=stop or []),
        seed=0,
        end_ids={END},
        embeds=embeds,
        decode=lambda ids: "".join(chr(ord("a") + token_id - 1) for token_id in ids),
    )
    return Sequence(prompt)


@dataclass(frozen=True)
class FakeTokens:
    tokens: list[SampledToken]

    def to_host(self) -> list[SampledToken]:
        return self.tokens


@dataclass
class FakeRunner:
    """Returns the tokens of each sequence's script in turn, then always `a`."""

    capacity: Capacity = field(default_factory=lambda: make_capacity())
    is_asynchronous: bool = False
    weight_bits: int = 32
    scripts: dict[Sequence, list[int]] = field(default_factory=dict)
    launched: Counter[Sequence] = field(default_factory=Counter)
    loaded: list[tuple[int, str]] = field(default_factory=list)
    swaps: list[SlotSwap] = field(default_factory=list)
    swap_errors: list[Exception] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    prefill_errors: list[Exception] = field(default_factory=list)
    decode_errors: list[Exception] = field(default_factory=list)
    # Errors of every step that contains the sequence.
    errors_of: dict[Sequence, Exception] = field(default_factory=dict)
    adapter_errors: list[Exception] = field(default_factory=list)
    usable: bool = True
    closed: bool = False

    def load_adapter(self, slot: int, adapter: AdapterHandle) -> None:
        if self.adapter_errors:
            raise self.adapter_errors.pop()
        self.loaded.append((slot, adapter.id))

    def swap_slots(self, swap: SlotSwap) -> bool:
        if self.swap_errors:
            raise self.swap_errors.pop()
        self.swaps.append(swap)
        return True

    def start(self, sequence: Sequence) -> None:
        assert sequence.blocks

    def prefill(self, prefills: list[Prefill], ready: list[Sequence]) -> list[ChunkRead]:
        """The hidden state of token n is (n, 1)."""
        if self.prefill_errors:
            raise self.prefill_errors.pop()
        self._raise_errors_of([prefill.sequence for prefill in prefills])
        return [ChunkRead(self._hidden_sum(one) if one.sequence.prompt.embeds else None) for one in prefills]

    def decode(self, running: list[Sequence]) -> FakeTokens:
        if self.decode_errors:
            raise self.decode_errors.pop()
        self._raise_errors_of(running)
        assert [sequence.row for sequence in running] == list(range(len(running)))
        return FakeTokens([self._next_token(sequence) for sequence in running])

    def decode_alone(self, sequence: Sequence) -> FakeTokens:
        self._raise_errors_of([sequence])
        return FakeTokens([self._next_token(sequence)])

    def move(self, move: Move) -> None:
        assert move.source > move.target

    def free(self, row: int) -> None:
        self.freed.append(row)

    def is_usable(self) -> bool:
        return self.usable

    def close(self) -> None:
        self.closed = True

    def _raise_errors_of(self, sequences: list[Sequence]) -> None:
        for error in [self.errors_of[one] for one in sequences if one in self.errors_of]:
            raise error

    def _hidden_sum(self, prefill: Prefill) -> HiddenSum:
        start = prefill.sequence.prefilled_count
        token_ids = prefill.sequence.prompt.token_ids[start : start + prefill.token_count]
        return np.array([sum(token_ids), len(token_ids)], dtype=float)

    def _next_token(self, sequence: Sequence) -> SampledToken:
        if not sequence.is_prefilled:
            return SampledToken(END)
        script, count = self.scripts.get(sequence, []), self.launched[sequence]
        self.launched[sequence] += 1
        return SampledToken(script[count] if count < len(script) else 1)


class Mailbox:
    """Records the replies to each sequence."""

    def __init__(self) -> None:
        self.replies: dict[Sequence, list[Reply]] = {}

    def deliver(self, replies: list[tuple[Sequence, Reply]]) -> None:
        for sequence, reply in replies:
            self.replies.setdefault(sequence, []).append(reply)

    def text(self, sequence: Sequence) -> str:
        return "".join(
            reply.text for reply in self.replies.get(sequence, []) if isinstance(reply, TokenDelta)
        )

    def end(self, sequence: Sequence) -> Finished | Failed:
        last = self.replies[sequence][-1]
        assert isinstance(last, Finished | Failed)
        return last

    def has_ended(self, sequence: Sequence) -> bool:
        return isinstance(self.replies.get(sequence, [None])[-1], Finished | Failed)
