"""One request on its way through the engine: what was asked, what was made, when it ends. Knows no torch."""

import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app.core.messages import BaseModelRef, Finished, Sampling, Timings, Usage
from worker.inference.text_stream import Decode, Detokenizer, StopStrings

FinishReason = Literal["stop", "length"]


class LoadedAdapter(Protocol):
    """An adapter whose weights are in memory; only the model runner looks inside."""

    @property
    def id(self) -> str: ...


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


@dataclass(eq=False)
class Sequence:
    """A prompt and the tokens made so far. The scheduler sets `row` and slot, the engine the rest."""

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

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.prompt.decode, self.prompt.context_ids)
        self._stops = StopStrings(self.prompt.sampling.stop)
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

    def start(self) -> None:
        """The work begins: waiting is over."""
        self._started_at = self.clock()

    def add_token(self, token_id: int) -> str:
        """Take the next token; answers the text that may go out, and sets the finish reason at the end."""
        self.token_ids.append(token_id)
        if self._first_token_at is None:
            self._first_token_at = self.clock()
        if token_id in self.prompt.end_ids:
            self.finish_reason = "stop"
            return self._rest()
        text = self._stops.add(self._detokenizer.add(token_id))
        if self._stops.found:
            self.finish_reason = "stop"
        elif self.length >= self.max_length:
            self.finish_reason = "length"
            text += self._rest()
        return text

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

    def _rest(self) -> str:
        text = self._stops.add(self._detokenizer.finish())
        if self._stops.found:
            self.finish_reason = "stop"
            return text
        return text + self._stops.flush()
