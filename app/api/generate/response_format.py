"""The `response_format` of a request, as in OpenAI's API: text, any JSON object, JSON of a schema.

The forms of other services are understood too. text-generation-inference has the schema in `value`, as an
object or as text, with the types `json`, `json_object` and `json_schema`; huggingface_hub turns OpenAI's form
into the second. Together AI, Fireworks and llama.cpp have it in `schema`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.api.chat.request_parts import RequestPart
from app.core.engine.messages import OutputSchema

_WITH_SCHEMA = {"json", "json_object", "json_schema"}


class TextFormat(RequestPart):
    """Anything."""

    type: Literal["text"] = Field(description="Any text.")


class JsonObjectFormat(RequestPart):
    """A JSON object."""

    type: Literal["json_object"] = Field(description="Any JSON object.")


class NamedSchema(RequestPart):
    """A schema and how closely it is kept to."""

    name: str = Field(max_length=64, description="What the JSON is; it changes nothing.")
    description: str | None = Field(None, description="What it is for; it changes nothing.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="A JSON schema.")
    strict: bool | None = Field(
        None, description="Refuse a schema with keywords that can't be kept to, instead of passing them over."
    )


class JsonSchemaFormat(RequestPart):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"] = Field(description="JSON that keeps to `json_schema`.")
    json_schema: NamedSchema = Field(description="The schema.")


def _as_openai(content: Any) -> Any:
    """Another service's form of a JSON schema in OpenAI's form. Raises ValueError for text that is none."""
    if not isinstance(content, dict) or content.get("type") not in _WITH_SCHEMA:
        return content
    found = [name for name in ("value", "schema") if content.get(name) is not None]
    if len(found) != 1 or content.get("json_schema") is not None:
        return content
    schema = _read_schema(content[found[0]])
    named = {name: value for name, value in content.items() if name not in ("type", "json_schema", *found)}
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        named |= schema
    else:
        named["schema"] = schema
    return {"type": "json_schema", "json_schema": {"name": "value", **named}}


def _read_schema(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("this text is no JSON schema") from None


ResponseFormat = Annotated[
    Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")],
    BeforeValidator(_as_openai),
]


def output_schema(response_format: ResponseFormat | None) -> OutputSchema | None:
    """The JSON schema that constrains the answer; None: any text."""
    match response_format:
        case JsonSchemaFormat(json_schema=named):
            return OutputSchema(source=json.dumps(named.json_schema or {}), strict=bool(named.strict))
        case JsonObjectFormat():
            return OutputSchema(source=json.dumps({"type": "object"}), strict=True)
    return None
