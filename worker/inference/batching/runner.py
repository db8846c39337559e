"""What the executor needs of a loaded base model, on the paged path or the general one. Knows no torch."""

from collections.abc import Mapping
from typing import Protocol

from worker.inference.adapters.slots import SlotSwap
from worker.inference.batching.drafts import Draft
from worker.inference.batching.model_batch import Capacity, Move, Prefill
from worker.inference.batching.prompt import AdapterHandle
from worker.inference.batching.prompt_scores import ChunkRead
from worker.inference.batching.sequence import SampledToken, Sequence


class PendingTokens(Protocol):
    """The tokens of a step that the device may still be computing."""

    def to_host(self) -> list[SampledToken]:
        """The tokens by row, at least up to the last row whose prompt is read. Waits for the device."""


class Runner(Protocol):
    """A loaded base model. Any method may raise; after an error no row has advanced.

    `prefill` returns what each chunk gives where the request wants an embedding or log-probabilities. It may
    read the last tokens of the sequences in `ready`, too, whose prompts are read: the next `decode` then only
    samples.
    `decode_alone` computes one sequence where `decode` has failed for the batch. `verify` returns, for each
    sequence whose prompt is read, its next token and one after each of its drafted tokens; the sequence has
    advanced by those up to the first that was not drafted. It needs `capacity.verified_positions`.
    `swap_slots` exchanges the adapters of two slots, of which running sequences use `source` alone, and
    returns whether it did; after an error it did not.
    """

    capacity: Capacity
    # Bits per weight of the large layers.
    weight_bits: int
    # Whether `decode` returns before the tokens are computed.
    is_asynchronous: bool

    def load_adapter(self, slot: int, adapter: AdapterHandle) -> None: ...
    def swap_slots(self, swap: SlotSwap) -> bool: ...
    def start(self, sequence: Sequence) -> None: ...
    def prefill(self, prefills: list[Prefill], ready: list[Sequence]) -> list[ChunkRead]: ...
    def decode(self, running: list[Sequence]) -> PendingTokens: ...
    def decode_alone(self, sequence: Sequence) -> PendingTokens: ...
    def verify(self, running: list[Sequence], drafts: Mapping[Sequence, Draft]) -> PendingTokens: ...
    def move(self, move: Move) -> None: ...
    def free(self, row: int) -> None: ...
    def is_usable(self) -> bool: ...
    def close(self) -> None: ...
