"""The state of one request: its prompt, the tokens and text made so far, and when it ends. Knows no torch."""

import time
from collections.abc import Callable, Collection, Sequence as Listed
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from app.core.engine.messages import (
    BaseModelRef,
    Delta,
    Finished,
    MadeToken,
    ServingPath,
    Timings,
    TokenProbability,
    Usage,
)
from app.core.engine.sampling import Sampling
from app.core.errors import InvalidRequest
from worker.inference.answers.answer_text import AnswerText, ParsedAnswer, ParsedFormat, PlainAnswer
from worker.inference.batching.embedding import HiddenSum, pack_embedding
from worker.inference.failures import ScoresNotFinite
from worker.inference.sampling.text_stream import Decode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# In the place of a token where the scores of the row are not finite numbers.
NO_TOKEN = -1

FinishReason = Literal["stop", "length", "tool_calls"]
TokenBytes = Callable[[int], bytes]


class Matcher(Protocol):
    """The state of one answer in its grammar."""

    def allowed_tokens(self) -> "npt.NDArray[np.int32]":
        """The tokens that may come next, as a bit mask: bit t % 32 of word t // 32 is token t."""

    def accept_token(self, token_id: int) -> None:
        """Advance by this token."""


class Grammar(Protocol):
    """A compiled grammar that an answer must match."""

    def start(self) -> Matcher:
        """Returns a new matcher for one answer."""


class AdapterHandle(Protocol):
    """An adapter whose weights are in main memory. Only the model runner uses more than its id."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class SampledLogprob:
    """The log-probability of a sampled token; `top`: (id, log-probability) of the likeliest tokens."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that the model sampled, with its log-probability where the request asks for that."""

    token_id: int
    logprob: SampledLogprob | None = None


@dataclass(frozen=True)
class Prompt:
    """A request after preprocessing."""

    base_model: BaseModelRef
    adapter: AdapterHandle | None
    token_ids: Listed[int]
    sampling: Sampling
    seed: int
    end_ids: Collection[int]
    decode: Decode
    # Tokens before the answer that its first token is decoded with; empty after a chat template.
    context_ids: Listed[int] = ()
    received_at: float | None = None
    # Set where log-probabilities are requested.
    token_bytes: TokenBytes | None = None
    grammar: Grammar | None = None
    # How to tell thoughts, text and calls apart; None: the answer is text.
    parsed: ParsedFormat | None = None
    # Whether the text's embedding is wanted in place of an answer.
    embeds: bool = False
    # What the paged engine can't compute, if anything.
    model_obstacle: str | None = None
    adapter_obstacle: str | None = None

    def check_ids(self, embedding_count: int) -> None:
        """Raise InvalidRequest for an id that is no row of the embedding: it would end a GPU's process."""
        unknown = max(self.token_ids)
        if unknown >= embedding_count:
            raise InvalidRequest(
                f"The prompt has the token {unknown}; the base model has {embedding_count} tokens.",
                param="prompt",
                hint="The tokenizer is of another model.",
            )


@dataclass(eq=False)
class Sequence:
    """A prompt and the tokens made so far.

    `row`, `blocks`, `adapter_slot`, `prefilled_count` and `length_limit` are set by ModelBatch at the start.
    """

    prompt: Prompt
    clock: Callable[[], float] = time.monotonic
    token_ids: list[int] = field(default_factory=list)
    prefilled_count: int = 0
    finish_reason: FinishReason | None = None
    row: int = -1
    blocks: list[int] = field(default_factory=list)
    adapter_slot: int = 0
    passed_over_count: int = 0
    length_limit: int | None = None
    queued_at: float = 0.0

    def __post_init__(self) -> None:
        # Computed once: the scheduler compares it at every step.
        self.base_key = self.prompt.base_model.key
        self._text = _make_text(self.prompt)
        self._matcher = self.prompt.grammar.start() if self.prompt.grammar else None
        self._received_at = self.clock() if self.prompt.received_at is None else self.prompt.received_at
        self._started_at = self._received_at
        self._first_token_at: float | None = None
        self._hidden_sum: HiddenSum | None = None

    @property
    def adapter_id(self) -> str | None:
        """The id of the adapter; None for the base model alone."""
        return self.prompt.adapter.id if self.prompt.adapter else None

    @property
    def length(self) -> int:
        """The number of tokens of prompt and answer so far."""
        return len(self.prompt.token_ids) + len(self.token_ids)

    @property
    def max_length(self) -> int:
        """The number of tokens of prompt and answer at which generation ends."""
        wanted = len(self.prompt.token_ids) + (
            0 if self.prompt.embeds else self.prompt.sampling.max_new_tokens
        )
        return wanted if self.length_limit is None else min(wanted, self.length_limit)

    @property
    def prefill_length(self) -> int:
        """The number of tokens to read before the first decode step, which reads the last one of a prompt.

        For an embedding, which has no decode step, all of them.
        """
        return len(self.prompt.token_ids) - (0 if self.prompt.embeds else 1)

    @property
    def is_prefilled(self) -> bool:
        """Whether the model has read the tokens that are read before the first decode step."""
        return self.prefilled_count >= self.prefill_length

    def fits(self, max_length: int) -> bool:
        """Whether the prompt, with at least one token of an answer to it, fits into so many tokens."""
        return len(self.prompt.token_ids) + (0 if self.prompt.embeds else 1) <= max_length

    @property
    def needs_host(self) -> bool:
        """Whether the next step must wait for `add_token`: a grammar's mask depends on the last token."""
        return self._matcher is not None

    def allowed_tokens(self) -> "npt.NDArray[np.int32] | None":
        """The bit mask of `Matcher.allowed_tokens`; None without a grammar."""
        return self._matcher.allowed_tokens() if self._matcher is not None else None

    def take_general_path(self, reason: str) -> None:
        """Generate with the base model of the general path in place of the paged one."""
        base_model = self.prompt.base_model.model_copy(update={"path": ServingPath.GENERAL})
        self.prompt = replace(self.prompt, base_model=base_model, model_obstacle=reason)
        self.base_key = base_model.key

    def start(self) -> None:
        """Record that the sequence has left the queue, for the timings."""
        self._started_at = self.clock()

    def add_token(self, token: SampledToken) -> Listed[Delta]:
        """Append the next token. Returns what may be sent now; sets `finish_reason` at the end.

        Raises InvalidRequest where the grammar fails, or where the model's scores are not finite.
        """
        if token.token_id == NO_TOKEN:
            raise ScoresNotFinite
        self.token_ids.append(token.token_id)
        if self._first_token_at is None:
            self._first_token_at = self.clock()
        if token.token_id in self.prompt.end_ids:
            deltas = self._text.finish(is_cut=False)
            self._end("stop")
            return deltas
        if self._matcher is not None:
            self._matcher.accept_token(token.token_id)
        made = None if token.logprob is None else self._describe(token.token_id, token.logprob)
        deltas = self._text.add(token.token_id, made)
        if self._text.is_over:
            self._end("stop")
        elif self.length >= self.max_length:
            deltas = [*deltas, *self._text.finish(is_cut=True)]
            self._end("stop" if self._text.is_over else "length")
        return deltas

    def add_read(self, token_count: int, hidden_sum: HiddenSum | None) -> None:
        """Record that the model has read so many more tokens; of an embedding, with their hidden states."""
        self.prefilled_count += token_count
        if hidden_sum is not None:
            self._hidden_sum = hidden_sum if self._hidden_sum is None else self._hidden_sum + hidden_sum

    def finish_embedding(self) -> Finished:
        """The final reply of an embedding. Waits for the device; raises ScoresNotFinite."""
        assert self._hidden_sum is not None
        embedding = pack_embedding(self._hidden_sum)
        self.finish_reason, self._first_token_at = "stop", self.clock()
        return self.finished().model_copy(update={"embedding": embedding})

    def finished(self) -> Finished:
        """The final reply, with usage and timings."""
        assert self.finish_reason is not None
        assert self._first_token_at is not None
        now = self.clock()
        working_seconds = now - self._started_at
        count = len(self.token_ids)
        return Finished(
            finish_reason=self.finish_reason,
            usage=Usage(
                prompt_tokens=len(self.prompt.token_ids),
                completion_tokens=count,
                reasoning_tokens=self._text.reasoning_token_count,
            ),
            timings=Timings(
                queued_seconds=self._started_at - self._received_at,
                first_token_seconds=self._first_token_at - self._started_at,
                total_seconds=now - self._received_at,
                tokens_per_second=count / working_seconds if working_seconds > 0 else 0.0,
                path=self.prompt.base_model.path,
                path_reason=self.prompt.model_obstacle or self.prompt.adapter_obstacle,
            ),
        )

    def _end(self, reason: Literal["stop", "length"]) -> None:
        """Set why the answer ends. Calls of functions end it, unless they were cut off."""
        self.finish_reason = "tool_calls" if reason == "stop" and self._text.has_calls else reason

    def _describe(self, token_id: int, logprob: SampledLogprob) -> MadeToken:
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


def _make_text(prompt: Prompt) -> AnswerText:
    if prompt.parsed is None:
        return PlainAnswer(prompt.decode, prompt.context_ids, prompt.sampling.stop)
    return ParsedAnswer(prompt.decode, prompt.parsed, prompt.sampling.stop)
