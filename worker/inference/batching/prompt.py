"""A request after preprocessing, and what it refers to: an adapter, a grammar. Knows no torch."""

from collections.abc import Callable, Collection, Sequence as Listed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from app.core.engine.messages import BaseModelRef
from app.core.engine.sampling import Sampling
from app.core.errors import InvalidRequest
from worker.inference.answers.answer_text import ParsedFormat
from worker.inference.sampling.text_stream import Decode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from worker.inference.sampling.grammars import GrammarSource

TokenBytes = Callable[[int], bytes]


class Matcher(Protocol):
    """The state of one answer in its grammar."""

    def allowed_tokens(self) -> "npt.NDArray[np.int32]":
        """The tokens that may come next, as a bit mask: bit t % 32 of word t // 32 is token t."""

    def allowed_along(self, token_ids: Listed[int]) -> "list[npt.NDArray[np.int32]]":
        """`allowed_tokens` now and after each of these tokens, up to the first that is not allowed."""

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
    # What the grammar was made of; it is not compiled where another engine generates.
    grammar_source: "GrammarSource | None" = None
    # How to tell thoughts, text and calls apart; None: the answer is text.
    parsed: ParsedFormat | None = None
    # Tokens that the answer is expected to repeat in part.
    predicted_ids: Listed[int] = ()
    # Whether the text's embedding is wanted in place of an answer.
    embeds: bool = False
    # Whether only the prompt's log-probabilities are wanted.
    reads_only: bool = False
    # How many of the likeliest tokens are wanted for each token of the prompt, with its log-probability.
    prompt_logprobs: int | None = None
    # Which tokens of the prompt are the reference whose likelihood is wanted.
    in_reference: Listed[bool] | None = None
    # What the paged engine can't compute, if anything.
    model_obstacle: str | None = None
    adapter_obstacle: str | None = None

    @property
    def makes_tokens(self) -> bool:
        """Whether an answer is wanted."""
        return not (self.embeds or self.reads_only)

    @property
    def is_scored(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are wanted."""
        return self.prompt_logprobs is not None or self.in_reference is not None

    def check_ids(self, embedding_count: int) -> None:
        """Raise InvalidRequest for an id that is no row of the embedding: it would end a GPU's process."""
        unknown = max(self.token_ids)
        if unknown >= embedding_count:
            raise InvalidRequest(
                f"The prompt has the token {unknown}; the base model has {embedding_count} tokens.",
                param="prompt",
                hint="The tokenizer is of another model.",
            )
