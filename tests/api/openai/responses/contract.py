"""The official client's own types, as the contract: what they need must be there, and of their types."""

from typing import Any

import httpx
import openai
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

event_adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

CALL: dict[str, Any] = {
    "type": "function",
    "name": "show_job",
    "description": "The state of a job.",
    "parameters": {
        "type": "object",
        "properties": {"id": {"type": "string"}},
        "required": ["id"],
        "additionalProperties": False,
    },
    "strict": True,
}


def check(response: Any) -> Any:
    """Returns a response of the client, which builds its types without a look at them, once it is checked."""
    Response.model_validate(response.model_dump(mode="json", by_alias=True, warnings=False))
    return response


def check_list(page: dict[str, Any]) -> dict[str, Any]:
    ResponseItemList.model_validate(page)
    return page


def events(live: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, as they are sent, each checked."""
    body = {"model": "helper", "input": "Hi", "stream": True, **fields}
    found = []
    with live.stream("POST", "/v1/responses", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                event = event_adapter.validate_json(line.removeprefix("data: "))
                content: dict[str, Any] = httpx.Response(200, text=line.removeprefix("data: ")).json()
                assert (event.type, content["type"]) == (name, name)
                found.append(content)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def create(client: openai.OpenAI, **options: Any) -> Any:
    return check(client.responses.create(**{"model": "helper", "input": "Hi", **options}))
