"""Log-probabilities of a prompt's own tokens, chunk by chunk as the prompt is read. Knows no torch."""

from dataclasses import dataclass
from typing import Protocol

from worker.inference.batching.embedding import HiddenSum


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """The log-probability of a token; `top`: (id, log-probability) of the likeliest tokens in its place."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class ChunkScores(Protocol):
    """The log-probabilities of the tokens that follow each token of a chunk; may still be on the device."""

    def to_host(self) -> list[ScoredToken]:
        """The tokens in order; NaN where scores are not finite. Waits for the device."""


@dataclass(frozen=True)
class ChunkRead:
    """What a chunk of a prompt gives besides keys and values, where the request wants it."""

    hidden_sum: HiddenSum | None = None
    scores: ChunkScores | None = None
