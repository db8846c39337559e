"""The state of one request: the tokens and text made so far, and when it ends. Knows no torch."""

import math
import time
from collections.abc import Callable, Sequence as Listed
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from app.core.engine.messages import (
    Delta,
    Finished,
    Likelihood,
    MadeToken,
    PromptDelta,
    ServingPath,
    Timings,
    TokenDelta,
    TokenProbability,
    TokenText,
    Usage,
)
from worker.inference.answers.answer_text import AnswerText, ParsedAnswer, PlainAnswer
from worker.inference.batching.drafts import Draft
from worker.inference.batching.embedding import HiddenSum, pack_embedding
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.prompt_scores import ChunkRead, ChunkScores, ScoredToken
from worker.inference.failures import ScoresNotFinite

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# In the place of a token where the scores of the row are not finite numbers.
NO_TOKEN = -1

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that the model sampled, with its log-probability where the request asks for that."""

    token_id: int
    logprob: ScoredToken | None = None


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
    # Drafted tokens that were verified, and how many of them the answer has.
    drafted_count: int = 0
    accepted_count: int = 0

    def __post_init__(self) -> None:
        # Computed once: the scheduler compares it at every step.
        self.base_key = self.prompt.base_model.key
        self._text = _make_text(self.prompt)
        self._matcher = self.prompt.grammar.start() if self.prompt.grammar else None
        self._received_at = self.clock() if self.prompt.received_at is None else self.prompt.received_at
        self._started_at = self._received_at
        self._first_token_at: float | None = None
        self._hidden_sum: HiddenSum | None = None
        self._scores: list[ChunkScores] = []
        self._is_described = False

    @property
    def adapter_id(self) -> str | None:
        """The id of the adapter; None for the base model alone."""
        return self.prompt.adapter.id if self.prompt.adapter else None

    @property
    def length(self) -> int:
        """The number of tokens of prompt and answer so far."""
        return len(self.prompt.token_ids) + len(self.token_ids)

    @property
    def last_token_id(self) -> int:
        """The last token of prompt and answer so far."""
        return self.token_ids[-1] if self.token_ids else self.prompt.token_ids[-1]

    @property
    def max_length(self) -> int:
        """The number of tokens of prompt and answer at which generation ends."""
        wanted = len(self.prompt.token_ids)
        if self.prompt.makes_tokens:
            wanted += self.prompt.sampling.max_new_tokens
        return wanted if self.length_limit is None else min(wanted, self.length_limit)

    @property
    def prefill_length(self) -> int:
        """The number of tokens to read before the first token is made: all but the last one of a prompt.

        Of an embedding, for which no token is made, all of them.
        """
        return len(self.prompt.token_ids) - (0 if self.prompt.embeds else 1)

    @property
    def is_prefilled(self) -> bool:
        """Whether the model has read the tokens that are read before the first decode step."""
        return self.prefilled_count >= self.prefill_length

    def fits(self, max_length: int) -> bool:
        """Whether the prompt, with at least one token of an answer to it, fits into so many tokens."""
        return len(self.prompt.token_ids) + self.prompt.makes_tokens <= max_length

    @property
    def needs_host(self) -> bool:
        """Whether the next step must wait for `add_token`: a grammar's mask depends on the last token."""
        return self._matcher is not None

    def allowed_tokens(self) -> "npt.NDArray[np.int32] | None":
        """The bit mask of `Matcher.allowed_tokens`; None without a grammar."""
        return self._matcher.allowed_tokens() if self._matcher is not None else None

    def allowed_draft(self, token_ids: Listed[int]) -> Draft:
        """A draft of these tokens, up to the first that the grammar does not allow."""
        if self._matcher is None:
            return Draft(token_ids)
        allowed = self._matcher.allowed_along(token_ids)
        return Draft(token_ids[: len(allowed) - 1], allowed)

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
        made = None if token.logprob is None else self._describe(token.token_id, token.logprob)
        if token.token_id in self.prompt.end_ids:
            deltas = self._text.finish(is_cut=False)
            self._end("stop")
            if self.prompt.prompt_logprobs is None or made is None:
                return deltas
            # With those of the prompt, every token that was made has its log-probability: clients count them.
            return [*deltas, TokenDelta(text="", tokens=[made])]
        if self._matcher is not None:
            self._matcher.accept_token(token.token_id)
        deltas = self._text.add(token.token_id, made)
        if self._text.is_over:
            self._end("stop")
        elif self.length >= self.max_length:
            deltas = [*deltas, *self._text.finish(is_cut=True)]
            self._end("stop" if self._text.is_over else "length")
        return deltas

    def end(self, *, is_cut: bool) -> Listed[Delta]:
        """End the answer where no token ends it; returns the rest of its text. `is_cut`: it is too long."""
        if self._first_token_at is None:
            self._first_token_at = self.clock()
        deltas = self._text.finish(is_cut=is_cut)
        self._end("stop" if self._text.is_over or not is_cut else "length")
        return deltas

    def add_read(self, token_count: int, read: ChunkRead) -> None:
        """Record that the model has read so many more tokens, and what it gave."""
        self.prefilled_count += token_count
        if read.hidden_sum is not None:
            added = read.hidden_sum
            self._hidden_sum = added if self._hidden_sum is None else self._hidden_sum + added
        if read.scores is not None:
            self._scores.append(read.scores)

    @property
    def has_unsent_read(self) -> bool:
        """Whether the prompt is read, and what was wanted of it was not sent."""
        is_wanted = self.prompt.prompt_logprobs is not None and not self._is_described
        return self.is_prefilled and (is_wanted or not self.prompt.makes_tokens)

    def describe_prompt(self) -> PromptDelta | None:
        """The tokens of a prompt that is read, where they are wanted. Waits for the device.

        Raises ScoresNotFinite.
        """
        if self.prompt.prompt_logprobs is None:
            return None
        assert self.prompt.token_bytes is not None
        self._is_described = True
        first, *others = self.prompt.token_ids
        described = map(self._describe, others, self._take_scores())
        return PromptDelta(
            first=TokenText(token_id=first, bytes=list(self.prompt.token_bytes(first))),
            tokens=list(described),
        )

    def finish_read(self) -> Finished:
        """The final reply where no token is made. Waits for the device; raises ScoresNotFinite."""
        found: dict[str, object] = {}
        if self.prompt.embeds:
            assert self._hidden_sum is not None
            found["embedding"] = pack_embedding(self._hidden_sum)
        if self.prompt.in_reference is not None:
            found["likelihood"] = self._add_up(self.prompt.in_reference)
        self.finish_reason = "stop" if self.prompt.embeds else "length"
        self._first_token_at = self.clock()
        return self.finished().model_copy(update=found)

    def _add_up(self, in_reference: Listed[bool]) -> Likelihood:
        pairs = zip(self._take_scores(), in_reference[1:], strict=True)
        logprobs = [score.logprob for score, is_counted in pairs if is_counted]
        return Likelihood(logprob=math.fsum(logprobs), tokens=len(logprobs))

    def _take_scores(self) -> list[ScoredToken]:
        """The scores of all tokens of the prompt but the first."""
        chunks, self._scores = self._scores, []
        scores = [score for chunk in chunks for score in chunk.to_host()]
        if any(math.isnan(score.logprob) for score in scores):
            raise ScoresNotFinite("scores for the prompt's tokens")
        return scores

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
                drafted_tokens=self.drafted_count,
                accepted_tokens=self.accepted_count,
            ),
        )

    def _end(self, reason: Literal["stop", "length"]) -> None:
        """Set why the answer ends. Calls of functions end it, unless they were cut off."""
        self.finish_reason = "tool_calls" if reason == "stop" and self._text.has_calls else reason

    def _describe(self, token_id: int, logprob: ScoredToken) -> MadeToken:
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
