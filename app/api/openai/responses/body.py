"""What POST /v1/responses takes."""

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field

from app.api.chat.request_parts import MustBeEmpty, MustBeNull, RequestPart, allow_only
from app.api.chat.template_variables import ReasoningEffort, TemplateFields, template_variables
from app.api.chat.tools import MAX_FUNCTIONS
from app.api.generate.response_format import (
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
    TextFormat,
    output_schema,
)
from app.api.openai.parameters import SUBJECT_DESCRIPTION, SamplingBody
from app.api.openai.responses.items import InputItem, ItemId
from app.api.openai.responses.tools import ToolChoiceParam, ToolParam
from app.core.engine.messages import OutputSchema
from app.core.engine.sampling import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS, Sampling

MAX_METADATA = 16
_LOGPROBS = "message.output_text.logprobs"
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
]


class SchemaFormat(NamedSchema):
    """JSON that keeps to a schema; the same as in chat, without the level `json_schema`."""

    model_config = ConfigDict(serialize_by_alias=True)
    type: Literal["json_schema"] = Field("json_schema", description="JSON that keeps to `schema`.")


TextConfigFormat = Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")]


class TextConfig(RequestPart):
    """What the text of an answer must look like."""

    format: TextConfigFormat | None = Field(
        None, description="Text, JSON, or JSON that keeps to a schema; default: text."
    )
    verbosity: Annotated[Any, allow_only("medium")] = Field(None, description="Only `medium`.")


class ReasoningConfig(RequestPart):
    """How much to think."""

    effort: ReasoningEffort | None = Field(
        None, description="What the chat template's `reasoning_effort` is; `none`: no thinking, where it can."
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Accepted; the thoughts themselves are returned."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="The older name of `summary`."
    )
    context: Literal["auto", "current_turn", "all_turns"] | None = Field(
        None, description="Accepted; the chat template decides."
    )
    mode: Annotated[Any, allow_only("standard")] = Field(None, description="Only `standard`.")


class ResponseStreamOptions(RequestPart):
    """Accepted; nothing is added to the events."""

    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is added.")


class ResponseBody(SamplingBody, TemplateFields):
    """A text, or items, to answer."""

    input: str | list[InputItem] = Field(
        [], description="Text of the user, or messages, calls of functions, their outputs, and reasoning."
    )
    instructions: str | None = Field(
        None, description="The system message, for this response alone: one that continues it has its own."
    )
    previous_response_id: ItemId | None = Field(
        None, description="The stored response that this one continues."
    )
    tools: list[ToolParam] | None = Field(
        None, max_length=MAX_FUNCTIONS, description="Functions that the model may call."
    )
    tool_choice: ToolChoiceParam | None = Field(None, description="Whether it must; default: `auto`.")
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most; default: true.")
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_NEW_TOKENS,
        description="Most tokens to make, thoughts too; default: as many as fit.",
    )
    text: TextConfig | None = Field(None, description="What the answer must look like.")
    reasoning: ReasoningConfig | None = Field(None, description="How much to think.")
    include: list[Include] | None = Field(
        None,
        max_length=len(get_args(Include)),
        description=f"`{_LOGPROBS}`: the log-probability of each token. The others change nothing: reasoning "
        "is returned as it is, not encrypted, and no tool runs here.",
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="And of so many of the likeliest in its place."
    )
    store: bool | None = Field(
        None, description="False: the response is not stored, and can be neither shown nor continued."
    )
    background: bool | None = Field(
        None, description="Return at once; GET shows the response when it has ended."
    )
    metadata: Metadata | None = Field(None, description="Up to 16 texts by name, returned as they are.")
    truncation: Annotated[Any, allow_only("disabled")] = Field(None, description="Only `disabled`.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Accepted; changes nothing.")

    conversation: MustBeNull = Field(None, description="Only null; see `previous_response_id`.")
    prompt: MustBeNull = Field(None, description="Only null: prompts are not stored here.")
    context_management: MustBeEmpty = Field(None, description="Only null or empty.")
    moderation: MustBeNull = Field(None, description="Only null.")
    background_options: MustBeNull = Field(None, description="Only null.")
    access_programs: MustBeNull = Field(None, description="Only null.")
    image: MustBeNull = Field(None, description="Only null.")

    max_tool_calls: int | None = Field(
        None, ge=1, le=2**31 - 1, description="Accepted; it is about tools of OpenAI's."
    )
    prompt_cache_key: str | None = Field(None, description=f"As `user`. {SUBJECT_DESCRIPTION}")
    prompt_cache_options: Any = Field(None, description="Accepted; changes nothing.")
    prompt_cache_retention: Any = Field(None, description="Accepted; changes nothing.")
    safety_identifier: str | None = Field(None, description=f"As `user`. {SUBJECT_DESCRIPTION}")
    service_tier: Any = Field(None, description="Accepted; changes nothing.")

    @property
    def text_config(self) -> TextConfig:
        """What the text must look like, with what holds where nothing was asked for."""
        chosen = self.text.format if self.text else None
        return TextConfig(format=chosen or TextFormat(type="text"), verbosity="medium")

    @property
    def output_schema(self) -> OutputSchema | None:
        """The JSON schema that constrains the answer; None: any text."""
        chosen = self.text.format if self.text else None
        if isinstance(chosen, SchemaFormat):
            return output_schema(JsonSchemaFormat(type="json_schema", json_schema=chosen))
        return output_schema(chosen)

    @property
    def template_variables(self) -> dict[str, Any]:
        """The variables of the chat template."""
        effort = template_variables(self.reasoning.effort) if self.reasoning else {}
        return effort | self.find_variables()

    @property
    def logprobs(self) -> int | None:
        """Of how many tokens in the place of each the log-probability is asked; None: none is."""
        if _LOGPROBS in (self.include or []) or self.top_logprobs:
            return self.top_logprobs or 0
        return None

    @property
    def engine_sampling(self) -> Sampling:
        """The sampling parameters of the engine's request."""
        return self.sampling(max_new_tokens=self.max_output_tokens or MAX_NEW_TOKENS, logprobs=self.logprobs)
