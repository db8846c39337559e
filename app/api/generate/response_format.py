"""The `response_format` of a request, as in OpenAI's API: text, any JSON object, JSON of a schema."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.engine.messages import OutputSchema


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextFormat(_Format):
    """Anything."""

    type: Literal["text"] = Field(description="Any text.")


class JsonObjectFormat(_Format):
    """A JSON object."""

    type: Literal["json_object"] = Field(description="Any JSON object.")


class NamedSchema(_Format):
    """A schema and how closely it is kept to."""

    name: str = Field(max_length=64, description="What the JSON is; it changes nothing.")
    description: str | None = Field(None, description="What it is for; it changes nothing.")
    json_schema: dict[str, Any] = Field({}, alias="schema", description="A JSON schema.")
    strict: bool | None = Field(
        None, description="Refuse a schema with keywords that can't be kept to, instead of passing them over."
    )


class JsonSchemaFormat(_Format):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"] = Field(description="JSON that keeps to `json_schema`.")
    json_schema: NamedSchema = Field(description="The schema.")


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def output_schema(response_format: ResponseFormat | None) -> OutputSchema | None:
    """The JSON schema that constrains the answer; None: any text."""
    match response_format:
        case JsonSchemaFormat(json_schema=named):
            return OutputSchema(source=json.dumps(named.json_schema), strict=bool(named.strict))
        case JsonObjectFormat():
            return OutputSchema(source=json.dumps({"type": "object"}), strict=True)
    return None
