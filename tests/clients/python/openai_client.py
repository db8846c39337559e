"""OpenAI's client for Python."""

import asyncio
import json
from typing import Any

import openai
from calls import KEY, MODEL, QUESTION, TOO_LONG, URL, CityName, NoError, Toolbox, call, run_calls
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
SHORT: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_completion_tokens": 16}
LONG: dict[str, Any] = SHORT | {"max_completion_tokens": 300}


class City(BaseModel):
    """A city."""

    name: CityName
    size: int = Field(ge=0, le=99)


class GetWeather(BaseModel):
    """Get the weather of a city."""

    city: CityName


class GetPopulation(BaseModel):
    """Get how many people live in a city."""

    city: CityName


TOOLS = [
    openai.pydantic_function_tool(GetWeather, name="get_weather"),
    openai.pydantic_function_tool(GetPopulation, name="get_population"),
]
RESPONSE_TOOLS: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]


@call
def models() -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    assert client.models.retrieve(MODEL).id == MODEL


@call
def chat() -> None:
    completion = client.chat.completions.create(messages=MESSAGES, **SHORT)
    assert completion.choices[0].message.content
    assert completion.usage
    assert completion.usage.completion_tokens <= 16


@call
def stream() -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **SHORT)
    *chunks, last = client.chat.completions.create(
        messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SHORT
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == whole.choices[0].message.content
    assert last.usage == whole.usage


@call
def stream_async() -> None:
    async def read() -> str:
        async with openai.AsyncOpenAI(base_url=URL, api_key=KEY) as client:
            answer = await client.chat.completions.create(messages=MESSAGES, stream=True, **SHORT)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    assert asyncio.run(read())


@call
def structured() -> None:
    completion = client.chat.completions.parse(messages=MESSAGES, response_format=City, **LONG)
    assert isinstance(completion.choices[0].message.parsed, City)


@call
def tools() -> None:
    completion = client.chat.completions.parse(messages=MESSAGES, tools=TOOLS, tool_choice="required", **LONG)
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    called = choice.message.tool_calls[0]
    assert called.id
    assert isinstance(called.function.parsed_arguments, GetWeather | GetPopulation)


@call
def tools_stream() -> None:
    named: Any = {"type": "function", "function": {"name": "get_population"}}
    with client.chat.completions.stream(messages=MESSAGES, tools=TOOLS, tool_choice=named, **LONG) as events:
        deltas = [event.arguments_delta for event in events if "arguments.delta" in event.type]
    called = events.get_final_completion().choices[0].message.tool_calls[0]
    assert called.function.name == "get_population"
    assert "".join(deltas) == called.function.arguments
    assert isinstance(called.function.parsed_arguments, GetPopulation)


@call
def agent() -> None:
    """The model chooses the functions itself; its messages go back as the client's own objects."""
    toolbox, messages = Toolbox(), list(MESSAGES)
    while True:
        completion = client.chat.completions.create(messages=messages, tools=TOOLS, **LONG)
        message = completion.choices[0].message
        if not message.tool_calls:
            break
        messages.append(message)
        for called in message.tool_calls:
            result = getattr(toolbox, called.function.name)(**json.loads(called.function.arguments))
            messages.append({"role": "tool", "tool_call_id": called.id, "content": result})
    toolbox.check(message.content)


@call
def responses() -> None:
    response = client.responses.create(
        model=MODEL, instructions="Be short.", input=QUESTION, temperature=0, max_output_tokens=16
    )
    assert response.output_text
    assert response.usage.output_tokens <= 16
    assert client.responses.retrieve(response.id).output_text == response.output_text

    following = client.responses.create(
        model=MODEL, input="And Lima?", previous_response_id=response.id, max_output_tokens=16
    )
    assert following.previous_response_id == response.id
    assert following.usage.input_tokens > response.usage.input_tokens
    client.responses.delete(response.id)
    try:
        client.responses.retrieve(response.id)
    except openai.NotFoundError:
        return
    raise NoError


@call
def responses_stream() -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=16) as events:
        texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == events.get_final_response().output_text


@call
def responses_structured() -> None:
    response = client.responses.parse(model=MODEL, input=QUESTION, text_format=City, max_output_tokens=300)
    assert isinstance(response.output_parsed, City)


@call
def responses_tools() -> None:
    chosen: Any = {"type": "function", "name": "get_population"}
    response = client.responses.parse(
        model=MODEL, input=QUESTION, tools=RESPONSE_TOOLS, tool_choice=chosen, max_output_tokens=300
    )
    (called,) = (item for item in response.output if item.type == "function_call")
    assert called.name == "get_population"
    assert called.call_id
    assert json.loads(called.arguments)["city"]


@call
def responses_agent() -> None:
    """Each turn continues the stored one before it."""
    toolbox = Toolbox()
    items: Any = QUESTION
    previous = None
    while items:
        response = client.responses.create(
            model=MODEL,
            input=items,
            tools=RESPONSE_TOOLS,
            previous_response_id=previous,
            temperature=0,
            max_output_tokens=300,
        )
        previous, items = response.id, []
        for item in response.output:
            if item.type == "function_call":
                result = getattr(toolbox, item.name)(**json.loads(item.arguments))
                items.append({"type": "function_call_output", "call_id": item.call_id, "output": result})
    toolbox.check(response.output_text)


@call
def embeddings() -> None:
    """In one request, as base64 (the client's default) and as numbers."""
    found = client.embeddings.create(model=MODEL, input=["Oslo", "Lima"])
    again = client.embeddings.create(model=MODEL, input="Lima", encoding_format="float")
    first, second = (one.embedding for one in found.data)
    assert len(first) == len(second) == len(again.data[0].embedding)
    assert max(abs(a - b) for a, b in zip(second, again.data[0].embedding, strict=True)) < 1e-4
    assert abs(sum(value * value for value in first) - 1) < 1e-3
    assert found.usage.prompt_tokens > 0


def error_of(**options: Any) -> openai.APIStatusError:
    try:
        client.chat.completions.create(**SHORT | {"messages": MESSAGES} | options)
    except openai.APIStatusError as error:
        return error
    raise NoError


@call
def errors() -> None:
    too_long = error_of(messages=[{"role": "user", "content": TOO_LONG}])
    assert isinstance(too_long, openai.BadRequestError)
    assert too_long.code == "context_length_exceeded"
    unknown = error_of(model="no-such-model")
    assert isinstance(unknown, openai.NotFoundError)
    assert unknown.code == "model_not_found"
    wrong = error_of(temperature=9)
    assert isinstance(wrong, openai.BadRequestError)
    assert wrong.param == "temperature"


if __name__ == "__main__":
    run_calls()
