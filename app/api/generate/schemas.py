"""What `POST /generate` takes and returns. Knows neither the database nor the engine's client."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.chat.calls import MessageToolCall
from app.api.chat.conversation import ChatMessageParam
from app.api.chat.template_variables import TemplateFields
from app.api.chat.tools import ToolFields
from app.api.generate.response_format import ResponseFormat
from app.core.engine.messages import MadeToken, Timings, Usage
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from app.core.specs.patterns import MODEL_NAME

MAX_CHOICES = 128


class GenerateBody(Sampling, ToolFields, TemplateFields):
    """A model; a prompt or messages; how to sample."""

    model: str | None = Field(
        None,
        min_length=1,
        max_length=400,
        description="An alias, or a base model's or an adapter's name, as under /v1.",
    )
    user: str | None = Field(
        None,
        max_length=400,
        description="Of an alias with several models: the same one is always served by the same model.",
    )
    adapter: str | None = Field(None, max_length=400, description="Id or name of an adapter.")
    base_model: str | None = Field(
        None, max_length=200, pattern=MODEL_NAME, description="A base model, to ask it without an adapter."
    )
    quantization: QuantizationSpec | None = Field(
        None,
        description="With a base model: how its weights are held; default: as in a job that says nothing. "
        "An adapter is on the weights that it was trained on.",
    )
    prompt: str | None = Field(None, min_length=1, description="Text to continue, taken as it is.")
    messages: list[ChatMessageParam] | None = Field(
        None, min_length=1, description="A conversation, rendered with the model's chat template."
    )
    n: int = Field(1, ge=1, le=MAX_CHOICES, description="How many answers; see `choices`.")
    response_format: ResponseFormat | None = Field(
        None, description="What the answer must look like: text, JSON, or JSON that keeps to a schema."
    )
    stream: bool = Field(False, description="Answer with server-sent events: `delta`, …, `done`.")


class ChoiceEndRead(BaseModel):
    """How one of several answers ended."""

    finish_reason: Literal["stop", "length", "tool_calls"] = Field(
        description="`length`: `max_new_tokens` were made. `tool_calls`: the functions are to be called."
    )


class ChoiceRead(ChoiceEndRead):
    """One of several answers."""

    text: str = Field(description="The answer, without the prompt.")
    tokens: list[MadeToken] | None = Field(None, description="Its tokens, with `logprobs`.")
    reasoning: str | None = Field(None, description="What was thought before the answer, if anything.")
    tool_calls: list[MessageToolCall] | None = Field(None, description="The functions to call, if any.")


class GenerationEndRead(ChoiceEndRead):
    """Everything of an answer but its text."""

    id: str = Field(description="Names this answer.", examples=["gen_4kq1v9x2m7ahc3zt"])
    adapter: str | None = Field(description="Id of the adapter that answered.")
    base_model: str = Field(description="The base model that answered.")
    quantization: QuantizationSpec = Field(description="How its weights were quantized.")
    usage: Usage = Field(description="Tokens read, and tokens made for all answers.")
    timings: Timings = Field(description="Where the time went; of several answers, for the slowest.")


class StreamEndRead(GenerationEndRead):
    """The last event of a stream."""

    choices: list[ChoiceEndRead] | None = Field(None, description="Every answer's end, with `n` above 1.")


class GenerationRead(GenerationEndRead):
    """An answer."""

    text: str = Field(description="The answer, without the prompt.")
    tokens: list[MadeToken] | None = Field(None, description="Its tokens, with `logprobs`.")
    reasoning: str | None = Field(None, description="What was thought before the answer, if anything.")
    tool_calls: list[MessageToolCall] | None = Field(None, description="The functions to call, if any.")
    choices: list[ChoiceRead] | None = Field(None, description="Every answer, with `n` above 1.")
