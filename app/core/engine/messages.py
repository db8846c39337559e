"""Messages between the API and the engine. Knows nothing of how the engine generates, so it can be replaced.

The API POSTs a GenerateRequest to `{engine_url}/generate` with the engine's token and reads JSON lines back:
any number of deltas (of text, thoughts and calls), then one Finished or one Failed. Closing the connection
cancels the work.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.engine.sampling import MAX_TOP_LOGPROBS, Sampling
from app.core.engine.wire import Wire
from app.core.specs.job import QuantizationSpec


class ChatMessage(Wire):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: str = Field(description="What is said; of a tool, the result of its call.")
    tool_calls: list[ToolCall] = Field([], description="The functions that an assistant's turn calls.")
    tool_call_id: str | None = Field(None, description="Which call a tool's turn is the result of.")
    name: str | None = Field(
        None, description="The name of the function that a tool's turn is the result of."
    )
    reasoning: str | None = Field(None, description="What an assistant's turn thought before its content.")


class AdapterRef(Wire):
    """An adapter and where its files are in the artifact store."""

    id: str
    artifact: str


class ServingPath(StrEnum):
    """Which code of an engine generates.

    `paged`: its own attention and linear layers, which batch requests. `general`: transformers and PEFT, one
    request after another at each step, for whatever the first can't compute.
    """

    PAGED = "paged"
    GENERAL = "general"


class BaseModelRef(Wire):
    """A base model and how its weights were quantized when adapters were trained against them."""

    name: str = Field(description="A Hub id or the name of a local model.")
    quantization: QuantizationSpec
    path: ServingPath = Field(ServingPath.PAGED, description="Which code of the engine generates.")

    @property
    def key(self) -> str:
        """A text that is equal for equal references."""
        return self.model_dump_json()


class OutputSchema(Wire):
    """JSON that an answer must be. `strict`: refuse a schema with keywords that can't be kept to."""

    model_config = ConfigDict(frozen=True)
    source: str
    strict: bool


class NamedFunction(Wire):
    """The one function that an answer must call."""

    name: str


ToolChoice = Literal["none", "auto", "required"] | NamedFunction


class Tools(Wire):
    """The functions that an answer may call. `choice`: whether it must."""

    functions: list[FunctionTool] = Field(min_length=1)
    choice: ToolChoice = "auto"
    parallel: bool = True  # False: one call at most

    @property
    def offered(self) -> list[FunctionTool]:
        """The functions that the answer may call."""
        if isinstance(self.choice, NamedFunction):
            return [one for one in self.functions if one.name == self.choice.name]
        return [] if self.choice == "none" else self.functions

    @property
    def must_call(self) -> bool:
        """Whether the answer must call a function."""
        return self.choice == "required" or isinstance(self.choice, NamedFunction)

    @property
    def allows_many(self) -> bool:
        """Whether the answer may call several times. The call of a named function is one."""
        return self.parallel and not isinstance(self.choice, NamedFunction)


class GenerateRequest(Wire):
    """One answer to make: of `prompt` (taken as it is), of `prompt_ids` (tokens), or of `messages` (rendered
    with the chat template).
    """

    base_model: BaseModelRef
    adapter: AdapterRef | None = None
    prompt: str | None = None
    prompt_ids: list[Annotated[int, Field(ge=0)]] | None = None
    messages: list[ChatMessage] | None = None
    sampling: Sampling = Sampling()
    output_schema: OutputSchema | None = None
    tools: Tools | None = None
    # Variables of the chat template, such as `enable_thinking` and `reasoning_effort`.
    template_variables: dict[str, Any] = Field({})
    # Whether the embedding of the prompt is wanted in place of an answer.
    embeds: bool = False
    # The log-probabilities of the prompt's own tokens are wanted, and of so many of the likeliest in place of
    # each.
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    # An answer to the prompt whose likelihood is wanted, as training would render it.
    reference: str | None = None
    # Whether the prompt is only read: no token is made.
    reads_only: bool = False
    # A text that the answer is expected to repeat in part, so that it is made sooner.
    prediction: str | None = None

    @model_validator(mode="after")
    def _scores_one_text(self) -> "GenerateRequest":
        if self.reference is not None and (self.prompt_ids is not None or not self.reads_only):
            raise ValueError("a reference needs a prompt or messages, and no answer is made")
        return self


class Usage(Wire):
    """Tokens read and made."""

    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")
    reasoning_tokens: int = Field(
        0,
        exclude_if=lambda count: count == 0,
        description="Those of the tokens made that are thoughts, with the markers around them.",
    )


class Timings(Wire):
    """Where the time went, in seconds."""

    queued_seconds: float = Field(description="Waiting, and loading the base model or the adapter.")
    first_token_seconds: float = Field(description="From the start of the work to the first token.")
    total_seconds: float = Field(description="From the request to the last token.")
    tokens_per_second: float = Field(description="Tokens made a second, once the first was there.")
    path: ServingPath = Field(
        ServingPath.PAGED,
        description="Which code of the engine generated: `paged` batches requests; `general`, for models and "
        "adapters that the first can't compute, is slower.",
    )
    path_reason: str | None = Field(None, description="Why it is the general path.")
    drafted_tokens: int = Field(
        0,
        exclude_if=lambda count: count == 0,
        description="Tokens looked up in the prompt and the answer that the model has verified, several in a "
        "step.",
    )
    accepted_tokens: int = Field(
        0,
        exclude_if=lambda count: count == 0,
        description="Those of them that the model would have made, and the answer has.",
    )


class TokenText(Wire):
    """A token."""

    token_id: int = Field(description="The token's id.")
    bytes: list[int] = Field(description="Its bytes; a character may be spread over several tokens.")


class TokenProbability(TokenText):
    """A token and how probable the model found it."""

    logprob: float = Field(description="The natural logarithm of its probability.")


class MadeToken(TokenProbability):
    """A token of the answer, and what else was likely in its place."""

    top: list[TokenProbability] = Field(description="The likeliest tokens, as many as were asked for.")


class TokenDelta(Wire):
    """Text that was just made; never half a character. `tokens` are those it is made of, where asked for."""

    type: Literal["delta"] = "delta"
    text: str
    tokens: list[MadeToken] | None = None


class PromptDelta(Wire):
    """The tokens of the prompt, where their log-probabilities were requested. Nothing predicts the first."""

    type: Literal["prompt"] = "prompt"
    first: TokenText
    tokens: list[MadeToken]


class ReasoningDelta(Wire):
    """Text of the thoughts before the answer, which is not part of it."""

    type: Literal["reasoning"] = "reasoning"
    text: str
    tokens: list[MadeToken] | None = None


class ToolCallDelta(Wire):
    """A part of a call. The first of each `index` has `id` and `name`; `arguments` is JSON, in parts.

    `is_withdrawn`: what was sent of this call turned out to be none; its text follows as a TokenDelta.
    """

    type: Literal["tool_call"] = "tool_call"
    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    is_withdrawn: bool = False
    tokens: list[MadeToken] | None = None


class Likelihood(Wire):
    """How probable the model found a text."""

    logprob: float = Field(description="The sum of its tokens' log-probabilities.")
    tokens: int = Field(description="How many tokens it has, with the end of the answer.")


class Finished(Wire):
    """The answer is complete. `embedding`, where it was wanted: little-endian 32-bit floats in base64.

    `likelihood`: that of the reference, where one was sent.
    """

    type: Literal["finished"] = "finished"
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    timings: Timings
    embedding: str | None = None
    likelihood: Likelihood | None = None


class Failed(Wire):
    """There is no answer, or no more of it. `kind` says which HTTP status it is."""

    type: Literal["failed"] = "failed"
    kind: Literal["invalid", "not_found", "busy", "unavailable", "internal"]
    code: str
    message: str
    param: str | None = None
    hint: str | None = None
    retry_after_seconds: int | None = None


Delta = TokenDelta | ReasoningDelta | ToolCallDelta | PromptDelta
Reply = Annotated[Delta | Finished | Failed, Field(discriminator="type")]
reply_adapter: TypeAdapter[Reply] = TypeAdapter(Reply)


def join_deltas(replies: list[Reply]) -> list[Reply]:
    """Returns the replies with consecutive deltas joined into one, so that fewer messages are sent."""
    joined: list[Reply] = []
    for reply in replies:
        both = _join(joined[-1], reply) if joined else None
        if both is None:
            joined.append(reply)
        else:
            joined[-1] = both
    return joined


def _join(first: Reply, second: Reply) -> Delta | None:
    """Both deltas as one, where the second continues the first."""
    if isinstance(first, TokenDelta) and isinstance(second, TokenDelta):
        return TokenDelta(text=first.text + second.text, tokens=_join_tokens(first, second))
    if isinstance(first, ReasoningDelta) and isinstance(second, ReasoningDelta):
        return ReasoningDelta(text=first.text + second.text, tokens=_join_tokens(first, second))
    if isinstance(first, ToolCallDelta) and isinstance(second, ToolCallDelta):
        if first.index != second.index or second.id is not None or second.is_withdrawn:
            return None
        joined = {"arguments": first.arguments + second.arguments, "tokens": _join_tokens(first, second)}
        return first.model_copy(update=joined)
    return None


def _join_tokens(first: Delta, second: Delta) -> list[MadeToken] | None:
    return [*(first.tokens or []), *(second.tokens or [])] or None
