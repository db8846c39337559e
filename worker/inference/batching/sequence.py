"""One request on its way through the engine: what was asked, what was made, when it ends. Knows no torch."""

import time
from collections.abc import Callable, Collection, Sequence as Listed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from app.core.engine.messages import (
    BaseModelRef,
    Finished,
    MadeToken,
    Sampling,
    Timings,
    TokenDelta,
    TokenProbability,
    Usage,
)
from worker.inference.sampling.text_stream import Decode, Detokenizer, HeldTokens, StopStrings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FinishReason = Literal["stop", "length"]
TokenBytes = Callable[[int], bytes]


class Matcher(Protocol):
    """Follows one answer through the grammar it must keep to."""

    def allowed(self) -> "npt.NDArray[np.int32]":
        """The tokens that may come next, a bit each, by token id."""

    def take(self, token_id: int) -> None:
        """The answer goes on with this token."""


class Grammar(Protocol):
    """What an answer must look like."""

    def start(self) -> Matcher:
        """A matcher for one answer."""


class LoadedAdapter(Protocol):
    """An adapter whose weights are in memory; only the model runner looks inside."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable a token was, and the likeliest tokens in its place with their ids."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A token that the model made; its log-probability where the sequence asks for it."""

    token_id: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Prompt:
    """A request as the model reads it."""

    base_model: BaseModelRef
    adapter: LoadedAdapter | None
    token_ids: Listed[int]
    sampling: Sampling
    seed: int
    end_ids: Collection[int]
    decode: Decode
    # The last tokens of a prompt that the answer goes on from without a break; empty after a chat template.
    context_ids: Listed[int] = ()
    received_at: float | None = None
    # Needed where log-probabilities are asked for.
    token_bytes: TokenBytes | None = None
    grammar: Grammar | None = None


@dataclass(eq=False)
class Sequence:
    """A prompt and the tokens made so far. The lane sets `row` and slot, the engine the rest."""

    prompt: Prompt
    clock: Callable[[], float] = time.monotonic
    token_ids: list[int] = field(default_factory=list)
    prefilled_count: int = 0
    finish_reason: FinishReason | None = None
    row: int = -1
    pages: list[int] = field(default_factory=list)
    adapter_slot: int = 0
    passed_over_count: int = 0
    length_limit: int | None = None
    queued_at: float = 0.0

    def __post_init__(self) -> None:
        # Compared far more often than made.
        self.base_key = self.prompt.base_model.key
        self._detokenizer = Detokenizer(self.prompt.decode, self.prompt.context_ids)
        self._stops = StopStrings(self.prompt.sampling.stop)
        self._held: HeldTokens[MadeToken] = HeldTokens()
        self._matcher = self.prompt.grammar.start() if self.prompt.grammar else None
        self._received_at = self.clock() if self.prompt.received_at is None else self.prompt.received_at
        self._started_at = self._received_at
        self._first_token_at: float | None = None

    @property
    def adapter_id(self) -> str | None:
        """None: the bare base model."""
        return self.prompt.adapter.id if self.prompt.adapter else None

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt.token_ids) + len(self.token_ids)

    @property
    def max_length(self) -> int:
        """The longest it may become."""
        longest = len(self.prompt.token_ids) + self.prompt.sampling.max_new_tokens
        return longest if self.length_limit is None else min(longest, self.length_limit)

    @property
    def is_prefilled(self) -> bool:
        """Whether the model has read the prompt but for its last token, which the first decode step reads."""
        return self.prefilled_count >= len(self.prompt.token_ids) - 1

    @property
    def needs_host(self) -> bool:
        """Whether the next step can't begin before the last token was added: its mask depends on it."""
        return self._matcher is not None

    def allowed_tokens(self) -> "npt.NDArray[np.int32] | None":
        """What the grammar lets come next, as Matcher says it; None without a grammar."""
        return self._matcher.allowed() if self._matcher is not None else None

    def start(self) -> None:
        """The work begins: waiting is over."""
        self._started_at = self.clock()

    def add_token(self, made: Made) -> TokenDelta | None:
        """Take the next token; answers what may go out, and sets the finish reason at the end."""
        self.token_ids.append(made.token_id)
        if self._first_token_at is None:
            self._first_token_at = self.clock()
        if made.token_id in self.prompt.end_ids:
            self.finish_reason = "stop"
            return self._delta(self._rest())
        if self._matcher is not None:
            self._matcher.take(made.token_id)
        new = self._detokenizer.add(made.token_id)
        if made.logprob is not None:
            self._held.add(self._describe(made.token_id, made.logprob))
        self._held.read(len(new))
        text = self._stops.add(new)
        if self._stops.found:
            self.finish_reason = "stop"
        elif self.length >= self.max_length:
            self.finish_reason = "length"
            text += self._rest()
        return self._delta(text)

    def finished(self) -> Finished:
        """The last word to the client."""
        assert self.finish_reason is not None
        assert self._first_token_at is not None
        now = self.clock()
        working_seconds = now - self._started_at
        made = len(self.token_ids)
        return Finished(
            finish_reason=self.finish_reason,
            usage=Usage(prompt_tokens=len(self.prompt.token_ids), completion_tokens=made),
            timings=Timings(
                queued_seconds=self._started_at - self._received_at,
                first_token_seconds=self._first_token_at - self._started_at,
                total_seconds=now - self._received_at,
                tokens_per_second=made / working_seconds if working_seconds > 0 else 0.0,
            ),
        )

    def _delta(self, text: str) -> TokenDelta | None:
        """The text with the tokens it is made of. Of a stop string neither text nor tokens go out."""
        is_whole = self.finish_reason is not None and not self._stops.found
        tokens = self._held.release(len(text), everything=is_whole)
        return TokenDelta(text=text, tokens=tokens or None) if text or tokens else None

    def _describe(self, token_id: int, logprob: TokenLogprob) -> MadeToken:
        token_bytes = self.prompt.token_bytes
        assert token_bytes is not None
        return MadeToken(
            token_id=token_id,
            bytes=list(token_bytes(token_id)),
            logprob=logprob.logprob,
            top=[
                TokenProbability(token_id=other, bytes=list(token_bytes(other)), logprob=value)
                for other, value in logprob.top
            ],
        )

    def _rest(self) -> str:
        text = self._stops.add(self._detokenizer.finish())
        if self._stops.found:
            self.finish_reason = "stop"
            return text
        return text + self._stops.flush()
