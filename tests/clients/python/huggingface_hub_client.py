"""huggingface_hub: `InferenceClient` with `base_url`."""

import json
from typing import Any

from calls import KEY, MODEL, QUESTION, URL, Toolbox, call, run_calls
from huggingface_hub import InferenceClient

client = InferenceClient(base_url=URL, api_key=KEY)
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
SHORT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 16}
LONG = SHORT | {"max_tokens": 300}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": SCHEMA}}
    for name in ("get_weather", "get_population")
]


@call
def chat() -> None:
    answer = client.chat_completion(**SHORT)
    assert answer.choices[0].message.content
    assert client.chat.completions.create(**SHORT).choices[0].message.content


@call
def stream() -> None:
    chunks = list(client.chat_completion(stream=True, **SHORT))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == client.chat_completion(**SHORT).choices[0].message.content


@call
def structured() -> None:
    named: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    answer = client.chat_completion(response_format=named, **LONG)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Lima")


@call
def structured_tgi() -> None:
    """The form of Text Generation Inference, which this client's examples show."""
    for kind in ("json", "json_object"):
        answer = client.chat_completion(response_format={"type": kind, "value": SCHEMA}, **LONG)
        assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Lima")


@call
def tools() -> None:
    answer = client.chat_completion(tools=TOOLS, tool_choice="required", **LONG)
    assert answer.choices[0].finish_reason == "tool_calls"
    called = answer.choices[0].message.tool_calls[0]
    assert json.loads(called.function.arguments)["city"] in ("Oslo", "Lima")


@call
def tools_stream() -> None:
    chosen: Any = {"type": "function", "function": {"name": "get_weather"}}
    chunks = list(client.chat_completion(tools=TOOLS, tool_choice=chosen, stream=True, **LONG))
    deltas = [one for chunk in chunks for choice in chunk.choices for one in choice.delta.tool_calls or []]
    assert deltas[0].function.name == "get_weather"
    assert json.loads("".join(one.function.arguments or "" for one in deltas))["city"] in ("Oslo", "Lima")


@call
def agent() -> None:
    """The messages that the client returns go back as its own objects."""
    toolbox, messages = Toolbox(), list(MESSAGES)
    while True:
        message = client.chat_completion(tools=TOOLS, **LONG | {"messages": messages}).choices[0].message
        if not message.tool_calls:
            break
        messages.append(message)
        for called in message.tool_calls:
            result = getattr(toolbox, called.function.name)(**json.loads(called.function.arguments))
            messages.append({"role": "tool", "tool_call_id": called.id, "content": result})
    toolbox.check(message.content)


if __name__ == "__main__":
    run_calls()
