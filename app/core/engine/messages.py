"""Messages between the API and the engine. Knows nothing of how the engine generates, so it can be replaced.

The API POSTs a GenerateRequest to `{engine_url}/generate` with the engine's token and reads JSON lines back:
any number of TokenDelta, then one Finished or one Failed. Closing the connection cancels the work.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.core.specs.job import QuantizationSpec

MAX_LOGIT_BIAS = 300
MAX_TOP_LOGPROBS = 20
# Below it a division of the scores by the temperature leaves nothing but the likeliest token.
MIN_TEMPERATURE = 1e-5
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 10.0
# The engine's integers have 64 bits.
MAX_TOP_K = MAX_SEED = 2**63 - 1
MAX_STOPS = 16
MAX_STOP_LENGTH = 10_000
# OpenAI's number for a token of hardly any probability; JSON has no infinity.
MIN_LOGPROB = -9999.0

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class Wire(BaseModel):
    """Refuses what it does not know: both sides are of one version."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ChatMessage(Wire):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: str = Field(description="What is said.")


class Sampling(Wire):
    """How tokens are chosen."""

    max_new_tokens: int = Field(256, ge=1, le=32768, description="Most tokens to make.")
    temperature: float = Field(
        0.7,
        ge=0,
        le=2,
        description=f"0, or anything below {MIN_TEMPERATURE:f}: always the likeliest token (greedy).",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens with this much probability."
    )
    top_k: int = Field(
        0, ge=0, le=MAX_TOP_K, description="Sample from so many likeliest tokens; 0: from all."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens less probable than this share of the likeliest one."
    )
    repetition_penalty: float = Field(
        1.0,
        ge=MIN_REPETITION_PENALTY,
        le=MAX_REPETITION_PENALTY,
        description="Above 1: what prompt or answer said becomes less likely.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from the score of every token that the answer has."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="The same, as often as the answer has the token."
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=MAX_LOGIT_BIAS, description="Added to the scores of tokens, by token id."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Say the log-probability of each token made and of so many of the likeliest instead: the "
        f"model's own, before bias, penalties and temperature; {MIN_LOGPROB:.0f} at least.",
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="The same seed gives the same text.")
    stop: list[StopText] = Field(
        [], max_length=MAX_STOPS, description="Texts that end the answer; they are not part of it."
    )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature < MIN_TEMPERATURE


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


class Usage(Wire):
    """Tokens read and made."""

    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")


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


class TokenProbability(Wire):
    """A token and how probable the model found it."""

    token_id: int = Field(description="The token's id.")
    bytes: list[int] = Field(description="Its bytes; a character may be spread over several tokens.")
    logprob: float = Field(description="The natural logarithm of its probability.")


class MadeToken(TokenProbability):
    """A token of the answer, and what else was likely in its place."""

    top: list[TokenProbability] = Field(description="The likeliest tokens, as many as were asked for.")


class TokenDelta(Wire):
    """Text that was just made; never half a character. `tokens` are those it is made of, where asked for."""

    type: Literal["delta"] = "delta"
    text: str
    tokens: list[MadeToken] | None = None


class Finished(Wire):
    """The answer is complete."""

    type: Literal["finished"] = "finished"
    finish_reason: Literal["stop", "length"]
    usage: Usage
    timings: Timings


class Failed(Wire):
    """There is no answer, or no more of it. `kind` says which HTTP status it is."""

    type: Literal["failed"] = "failed"
    kind: Literal["invalid", "not_found", "busy", "unavailable", "internal"]
    code: str
    message: str
    param: str | None = None
    hint: str | None = None
    retry_after_seconds: int | None = None


Reply = Annotated[TokenDelta | Finished | Failed, Field(discriminator="type")]
reply_adapter: TypeAdapter[Reply] = TypeAdapter(Reply)


def join_deltas(replies: list[Reply]) -> list[Reply]:
    """Returns the replies with consecutive deltas joined into one, so that fewer messages are sent."""
    joined: list[Reply] = []
    for reply in replies:
        last = joined[-1] if joined else None
        if isinstance(last, TokenDelta) and isinstance(reply, TokenDelta):
            tokens = [*(last.tokens or []), *(reply.tokens or [])]
            joined[-1] = TokenDelta(text=last.text + reply.text, tokens=tokens or None)
        else:
            joined.append(reply)
    return joined


class ServedBase(Wire):
    """A base model that an engine holds."""

    base_model: BaseModelRef
    weight_bits: int = Field(
        description="4: packed as QLoRA packs them; else unpacked once, or never packed."
    )
    adapters: list[str] = Field([], description="Ids of the adapters loaded on it.")


class LoadingBase(Wire):
    """A base model that an engine is loading; until it is there, requests for it wait."""

    base_model: BaseModelRef
    since: datetime = Field(description="When loading began.")


class WaitingRequests(Wire):
    """How many requests wait for which base model, loaded or not."""

    base_model: BaseModelRef
    count: int = Field(description="How many.")


class EngineHealth(Wire):
    """Whether an engine works: each request for it asks the loop for a sign, which its next step gives."""

    status: Literal["ok"] = "ok"
    running: int = Field(0, description="Sequences that are being generated.")
    waiting: int = Field(0, description="Sequences in the queue.")
    silent_seconds: float = Field(
        0.0, description="How long what the loop does now delays the sign asked for."
    )
    limit_seconds: float = Field(0.0, description="How long what it does now may take.")
    is_loading: bool = Field(False, description="Whether a base model is being loaded.")

    @property
    def is_moving(self) -> bool:
        """Whether the loop moves, or does what may take so long."""
        return self.silent_seconds <= self.limit_seconds


class ServedPath(Wire):
    """How an engine has served a base model on one path since it started, whether or not it is loaded now."""

    base_model: str = Field(description="A Hub id or the name of a local model.")
    path: ServingPath = Field(description="Which code of the engine generates.")
    reason: str | None = Field(
        None, description="What in the base model the paged engine can't compute; null: nothing."
    )
    tokens_per_second: float | None = Field(
        None, description="Tokens made a second for one request, a mean over the last answers."
    )


class EngineState(Wire):
    """What the engine serves now; it stands in the worker's row."""

    base_model: BaseModelRef | None = Field(None, description="The base model that was used last.")
    adapters: list[str] = Field([], description="Ids of the adapters that are loaded, on whichever base.")
    bases: list[ServedBase] = Field(
        [], description="Base models that are loaded, the one used last at the end."
    )
    served: list[ServedPath] = Field(
        [], description="How the base models that were used last were served, the latest at the end."
    )
    loading: LoadingBase | None = Field(None, description="The base model that is being loaded.")
    waiting: list[WaitingRequests] = Field([], description="Requests that have not begun.")
    paused_by: str | None = Field(
        None, description="Id of the job that has the GPU, while serving is paused."
    )
    shares_with: str | None = Field(
        None,
        description="Id of the job that trains on the GPU beside serving.",
    )

    @property
    def loaded(self) -> list[BaseModelRef]:
        """Base models that need not be loaded, the one used last first."""
        bases = [base.base_model for base in reversed(self.bases)]
        return bases or ([self.base_model] if self.base_model else [])
