"""One schema, in the forms in which clients of OpenAI and of other services send it."""

import json
from typing import Any

import httpx
import pytest
from huggingface_hub import (
    ChatCompletionInputJSONSchema,
    ChatCompletionInputResponseFormatJSONSchema,
    InferenceClient,
)
from pydantic import TypeAdapter

from app.api.generate.response_format import ResponseFormat, output_schema
from app.core.storage.database import Database
from tests.factories import make_adapter
from tests.fakes import FakeEngine

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ADAPTER: TypeAdapter[Any] = TypeAdapter(ResponseFormat)


@pytest.mark.parametrize(
    ("form", "strict"),
    [
        ({"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA, "strict": True}}, True),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "c", "schema": SCHEMA, "strict": None, "x": None},
            },
            False,
        ),
        ({"type": "json", "value": SCHEMA}, False),
        ({"type": "json", "value": json.dumps(SCHEMA)}, False),
        ({"type": "json_schema", "value": SCHEMA}, False),
        ({"type": "json_schema", "value": {"name": "c", "schema": SCHEMA}}, False),
        ({"type": "json_schema", "value": {"schema": SCHEMA}, "json_schema": None}, False),
        ({"type": "json_object", "value": SCHEMA}, False),
        ({"type": "json_object", "schema": SCHEMA}, False),
        ({"type": "json_schema", "name": "c", "schema": SCHEMA, "strict": True}, True),
    ],
)
def test_every_form_is_the_same_schema(form: dict[str, Any], strict: bool) -> None:
    found = output_schema(ADAPTER.validate_python(form))
    assert found is not None
    assert (json.loads(found.source), found.strict) == (SCHEMA, strict)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "json"}, "response_format"),
        ({"type": "json", "value": "no schema"}, "response_format"),
        ({"type": "json", "value": [1]}, "response_format"),
        ({"type": "json_schema", "value": "{"}, "response_format"),
        ({"type": "regex", "value": "a+"}, "response_format"),
        ({"type": "text", "value": SCHEMA}, "response_format.value"),
    ],
)
def test_what_is_no_schema_is_named(live: httpx.Client, form: dict[str, Any], param: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": form}
    answer = live.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_client_of_the_hub_sends_a_schema(
    live: httpx.Client, engine: FakeEngine, database: Database
) -> None:
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
    client = InferenceClient(base_url=f"{live.base_url}/v1", token="none")
    schema = ChatCompletionInputJSONSchema(name="city", schema=SCHEMA)
    newer = ChatCompletionInputResponseFormatJSONSchema(type="json_schema", json_schema=schema)
    for form in (newer, {"type": "json", "value": SCHEMA}):
        client.chat_completion(
            [{"role": "user", "content": "Name a city."}], model="helper", response_format=form
        )
    sent = [asked.output_schema for asked in engine.requests]
    assert [json.loads(one.source) for one in sent if one] == [SCHEMA, SCHEMA]
