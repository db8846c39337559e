"""What requests to /v1/evals send, by the shapes of the OpenAI client. Pure."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from app.api.chat.request_parts import MustBeNull, RequestPart
from app.core.chat.tools import FunctionTool
from app.core.evaluations.spec import MAX_ROWS, EvaluationSampling
from app.core.graders.shapes import MAX_GRADERS, Grader, TemplateMessage
from app.core.graders.structure import compile_schema
from app.core.specs.job import Metadata
from app.core.specs.patterns import ITEM_REFERENCE

Name = Annotated[str, Field(min_length=1, max_length=255)]


class CustomDataSourceConfig(RequestPart):
    """Rows of any shape."""

    type: Literal["custom"] = Field(description="Only `custom`: completions are not stored here.")
    item_schema: dict[str, Any] = Field(description="The JSON schema of each row.")
    include_sample_schema: bool | None = Field(None, description="Whether rows or a model give samples.")

    @field_validator("item_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        compile_schema(schema)
        return schema

    def as_shown(self) -> dict[str, Any]:
        """The configuration as responses have it: with the schema of what templates read."""
        properties: dict[str, Any] = {"item": self.item_schema}
        if self.include_sample_schema:
            properties["sample"] = _SAMPLE_SCHEMA
        schema = {"type": "object", "properties": properties, "required": ["item"]}
        return {"type": "custom", "schema": schema}


_SAMPLE_SCHEMA = {
    "type": "object",
    "properties": {
        "output_text": {"type": "string"},
        "output_json": {},
        "output_tools": {"type": "array"},
        "choices": {"type": "array"},
    },
    "required": ["output_text"],
}


class EvalBody(RequestPart):
    """An eval: what rows look like, and what grades them."""

    name: Name | None = Field(None, description="Its name.")
    data_source_config: CustomDataSourceConfig = Field(description="What rows look like.")
    testing_criteria: Annotated[list[Grader], Field(min_length=1, max_length=MAX_GRADERS)] = Field(
        description="The graders of every run."
    )
    metadata: Metadata | None = Field(None, description="Words of your own about the eval.")


class EvalUpdateBody(RequestPart):
    """What can be changed of an eval."""

    name: Name | None = Field(None, description="Its new name.")
    metadata: Metadata | None = Field(None, description="Its new metadata, in place of the old.")


class SourceRow(RequestPart):
    """A row, and an answer to it where there is one already."""

    item: dict[str, Any] = Field(description="What templates call `item`.")
    sample: dict[str, Any] | None = Field(None, description="An answer: `output_text`, `output_tools`.")


class FileContent(RequestPart):
    """Rows in the request."""

    type: Literal["file_content"] = Field(description="Always `file_content`.")
    content: Annotated[list[SourceRow], Field(min_length=1, max_length=MAX_ROWS)] = Field(
        description="The rows."
    )


class FileReference(RequestPart):
    """Rows of a file that was uploaded with the purpose `evals`."""

    type: Literal["file_id"] = Field(description="Always `file_id`.")
    id: Annotated[str, Field(max_length=64)] = Field(description="The file's id.")


Source = Annotated[FileContent | FileReference, Field(discriminator="type")]


class MessageTemplate(RequestPart):
    """Messages whose contents are templates."""

    type: Literal["template"] = Field(description="Always `template`.")
    template: Annotated[list[TemplateMessage], Field(min_length=1, max_length=100)] = Field(
        description="The messages."
    )


class InputReference(RequestPart):
    """Messages that each row has."""

    type: Literal["item_reference"] = Field(description="Always `item_reference`.")
    item_reference: Annotated[str, Field(max_length=400, pattern=ITEM_REFERENCE)] = Field(
        description="Where they are, such as `item.messages`."
    )


InputMessages = Annotated[MessageTemplate | InputReference, Field(discriminator="type")]


class RunFunction(RequestPart):
    """A function that the model may call."""

    type: Literal["function"] = Field(description="Always `function`.")
    function: FunctionTool = Field(description="The function.")


class RunSampling(RequestPart):
    """How the model is sampled."""

    max_completion_tokens: int | None = Field(None, ge=1, le=32_768, description="Most tokens to make.")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="The same seed gives the same answers.")
    temperature: float | None = Field(None, ge=0, le=2, description="Default 1; 0: the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sample from tokens with this probability.")
    tools: Annotated[list[RunFunction], Field(max_length=128)] | None = Field(
        None, description="Functions that the model may call."
    )
    reasoning_effort: MustBeNull = Field(None, description="Only null.")
    response_format: dict[str, Any] | None = Field(None, description="Only of type `text`.")
    text: dict[str, Any] | None = Field(None, description="Only with a format of type `text`.")

    @field_validator("response_format", "text")
    @classmethod
    def _is_text(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        kind = (value or {}).get("format", value) or {}
        if kind.get("type", "text") != "text":
            raise ValueError("only text is supported here; a `json_schema` grader checks answers")
        return value

    def as_sampling(self) -> EvaluationSampling:
        """The sampling of the native evaluation. As in OpenAI's API, the default temperature is 1."""
        given = {"max_new_tokens": self.max_completion_tokens, "seed": self.seed, "top_p": self.top_p}
        return EvaluationSampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            **{name: value for name, value in given.items() if value is not None},
        )


class JsonlDataSource(RequestPart):
    """Rows that have their answers, or need none."""

    type: Literal["jsonl"] = Field(description="Always `jsonl`.")
    source: Source = Field(description="Where the rows are.")


class ModelDataSource(RequestPart):
    """Rows that a model answers. Both types do the same here."""

    type: Literal["completions", "responses"] = Field(description="`completions` or `responses`.")
    source: Source = Field(description="Where the rows are. Stored completions and responses can't be used.")
    model: Annotated[str, Field(min_length=1, max_length=400)] = Field(
        description="A base model's name, or an adapter's id or name."
    )
    input_messages: InputMessages | None = Field(
        None, description="What the model is asked; default: the row's own `messages` or `prompt`."
    )
    sampling_params: RunSampling | None = Field(None, description="How the model is sampled.")


DataSource = Annotated[JsonlDataSource | ModelDataSource, Field(discriminator="type")]


class RunBody(RequestPart):
    """A run: rows, and a model where they have no answers."""

    name: Name | None = Field(None, description="Its name.")
    data_source: DataSource = Field(description="The rows, and what answers them.")
    metadata: Metadata | None = Field(None, description="Words of your own about the run.")
