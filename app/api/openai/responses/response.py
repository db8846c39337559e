"""What /v1/responses returns: a response, and lists of items."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.openai.responses.body import Metadata, ReasoningConfig, TextConfig
from app.api.openai.responses.items import Item
from app.api.openai.responses.tools import FunctionParam, ToolChoiceParam
from app.core.specs.states import ResponseStatus


class InputTokensDetails(BaseModel):
    """What the tokens read are."""

    cached_tokens: int = Field(0, description="Always 0.")
    cache_write_tokens: int = Field(0, description="Always 0.")


class OutputTokensDetails(BaseModel):
    """What the tokens made are."""

    reasoning_tokens: int = Field(description="Thoughts, which are not part of the answer.")


class ResponseUsage(BaseModel):
    """Tokens read and made."""

    input_tokens: int = Field(description="Tokens read.")
    input_tokens_details: InputTokensDetails = Field(InputTokensDetails(), description="What they are.")
    output_tokens: int = Field(description="Tokens made.")
    output_tokens_details: OutputTokensDetails = Field(description="What they are.")
    total_tokens: int = Field(description="Both together.")


class IncompleteDetails(BaseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = Field(description="No more tokens were wanted or fit.")


class ResponseError(BaseModel):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] = Field(
        description="OpenAI's word for the kind of error."
    )
    message: str = Field(description="What happened and what to do next, for a person.")
    param: str | None = Field(None, description="The parameter it is about.")


class ResponseObject(BaseModel):
    """A response: what was asked for, and the items of the answer."""

    id: str = Field(description="Names this response.", examples=["resp_4kq1v9x2m7ahc3zt"])
    object: Literal["response"] = Field("response", description="Always `response`.")
    created_at: int = Field(description="When it was asked for, in seconds since 1970.")
    completed_at: int | None = Field(None, description="When it was completed.")
    status: ResponseStatus = Field(description="Where it stands.")
    error: ResponseError | None = Field(None, description="Why it failed.")
    incomplete_details: IncompleteDetails | None = Field(None, description="Why it is incomplete.")
    model: str = Field(description="`model` as it was asked for; of an alias, the model that served.")
    output: list[Item] = Field([], description="The answer: reasoning, messages, calls of functions.")
    usage: ResponseUsage | None = Field(None, description="Tokens read and made.")
    system_fingerprint: str = Field(
        description="Not OpenAI's here. How the base model's weights were quantized.", examples=["nf4-auto"]
    )
    background: bool = Field(description="Whether it is made in the background.")
    instructions: str | None = Field(description="As asked for.")
    max_output_tokens: int | None = Field(description="As asked for.")
    max_tool_calls: int | None = Field(description="As asked for.")
    metadata: Metadata = Field(description="As asked for.")
    parallel_tool_calls: bool = Field(description="As asked for.")
    previous_response_id: str | None = Field(description="The response that this one continues.")
    prompt_cache_key: str | None = Field(description="As asked for.")
    reasoning: ReasoningConfig = Field(description="As asked for.")
    safety_identifier: str | None = Field(description="As asked for.")
    service_tier: Literal["default"] = Field("default", description="Always `default`.")
    store: bool = Field(description="Whether it is stored.")
    temperature: float = Field(description="As asked for.")
    text: TextConfig = Field(description="As asked for.")
    tool_choice: ToolChoiceParam = Field(description="As asked for.")
    tools: list[FunctionParam] = Field(description="As asked for.")
    top_logprobs: int = Field(description="As asked for.")
    top_p: float = Field(description="As asked for.")
    truncation: Literal["disabled"] = Field("disabled", description="Always `disabled`.")
    user: str | None = Field(description="As asked for.")


class ResponseDeleted(BaseModel):
    """The response is gone."""

    id: str = Field(description="The response's id.")
    object: Literal["response"] = Field("response", description="Always `response`.")
    deleted: Literal[True] = Field(True, description="Always true.")


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[Item] = Field(description="The items of this page.")
    first_id: str | None = Field(description="The first one's id; null: the page is empty.")
    last_id: str | None = Field(description="The last one's id, for `after`; null: the page is empty.")
    has_more: bool = Field(description="Whether there are more; `after` the id of the last one shows them.")
