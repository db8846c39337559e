"""LiteLLM: `openai/<model>` with `api_base`."""

import json
import os
from typing import Any

from calls import KEY, MODEL, QUESTION, TOO_LONG, URL, CityName, NoError, Toolbox, call, run_calls
from pydantic import BaseModel, Field

# Prices of the vendors' models, from the package instead of the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
import litellm

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
SERVICE: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "num_retries": 0}
SHORT = SERVICE | {"temperature": 0, "max_tokens": 16}
LONG = SERVICE | {"temperature": 0, "max_tokens": 300}


class City(BaseModel):
    """A city."""

    name: CityName
    size: int = Field(ge=0, le=99)


def as_tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima", "Kyoto"]}},
        "required": ["city"],
    }
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TOOLS = [as_tool("get_weather"), as_tool("get_population")]


@call
def models() -> None:
    found = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_base=URL, api_key=KEY
    )
    assert any(name.endswith(MODEL) for name in found), found


@call
def chat() -> None:
    answer = litellm.completion(messages=MESSAGES, **SHORT)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 16


@call
def stream() -> None:
    whole = litellm.completion(messages=MESSAGES, **SHORT).choices[0].message.content
    chunks = list(litellm.completion(messages=MESSAGES, stream=True, **SHORT))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


@call
def structured() -> None:
    answer = litellm.completion(messages=MESSAGES, response_format=City, **LONG)
    City.model_validate_json(answer.choices[0].message.content)


@call
def tools() -> None:
    answer = litellm.completion(messages=MESSAGES, tools=TOOLS, tool_choice="required", **LONG)
    assert answer.choices[0].finish_reason == "tool_calls"
    (called, *_) = answer.choices[0].message.tool_calls
    assert called.function.name in ("get_weather", "get_population")
    assert called.id


@call
def tools_stream() -> None:
    chunks = list(
        litellm.completion(messages=MESSAGES, tools=TOOLS, tool_choice="required", stream=True, **LONG)
    )
    answer = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    (called, *_) = answer.choices[0].message.tool_calls
    assert json.loads(called.function.arguments)["city"]


@call
def agent() -> None:
    """The messages that the client returns go back as its own objects."""
    toolbox, messages = Toolbox(), list(MESSAGES)
    while True:
        message = litellm.completion(messages=messages, tools=TOOLS, **LONG).choices[0].message
        if not message.tool_calls:
            break
        messages.append(message)
        for called in message.tool_calls:
            name = called.function.name
            result = getattr(toolbox, name)(**json.loads(called.function.arguments))
            messages.append({"role": "tool", "tool_call_id": called.id, "name": name, "content": result})
    toolbox.check(message.content)


@call
def responses() -> None:
    response = litellm.responses(input=QUESTION, temperature=0, max_output_tokens=16, **SERVICE)
    assert response.output_text
    events = list(
        litellm.responses(input=QUESTION, temperature=0, max_output_tokens=16, stream=True, **SERVICE)
    )
    assert events[0].type == "response.created", events[0]
    assert any(event.type == "response.output_text.delta" for event in events)


@call
def embeddings() -> None:
    found = litellm.embedding(input=["Oslo", "Lima"], encoding_format="float", **SERVICE)
    first, second = (one["embedding"] for one in found.data)
    assert len(first) == len(second) > 1


@call
def errors() -> None:
    try:
        litellm.completion(**SHORT | {"messages": [{"role": "user", "content": TOO_LONG}]})
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise NoError
    try:
        litellm.completion(messages=MESSAGES, **SHORT | {"model": "openai/no-such-model"})
    except litellm.NotFoundError:
        return
    raise NoError


if __name__ == "__main__":
    run_calls()
