"""Functions in chat requests, in both of OpenAI's forms, from the official client to the engine and back."""

from typing import Any

import httpx
import openai
import pytest

from app.core.engine.messages import NamedFunction
from tests.api.openai.test_chat_answers import CALLING
from tests.fakes import FakeEngine

QUESTION: dict[str, Any] = {"role": "user", "content": "Weather in Rome?"}
FUNCTION: dict[str, Any] = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
ONE_CALL = [CALLING[2], CALLING[3], CALLING[4], CALLING[6]]


def ask(client: openai.OpenAI, messages: list[Any] | None = None, **options: Any) -> Any:
    return client.chat.completions.create(model="helper", messages=messages or [QUESTION], **options)


def test_a_call_goes_back_with_its_result_as_it_came(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    engine.scripts = [[*ONE_CALL]]
    message = ask(openai_client, tools=tools).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "31 °C"}
    ask(openai_client, [QUESTION, message, result], tools=tools)
    first, second = engine.requests
    assert first.tools is not None
    assert [function.name for function in first.tools.functions] == ["weather"]
    assert second.messages is not None
    _, called, said = second.messages
    assert (called.tool_calls[0].arguments, said.tool_call_id) == ({"city": "Rome"}, call.id)


@pytest.mark.parametrize("stream", [False, True])
def test_the_older_form_is_answered_in_the_older_form(
    openai_client: openai.OpenAI, engine: FakeEngine, stream: bool
) -> None:
    engine.script = [*ONE_CALL]
    answer = ask(openai_client, functions=[FUNCTION], function_call={"name": "weather"}, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        calls = [chunk.delta.function_call for chunk in chunks if chunk.delta.function_call]
        found = (calls[0].name, "".join(call.arguments for call in calls), chunks[-1].finish_reason)
    else:
        (choice,) = answer.choices
        called = choice.message.function_call
        found = (called.name, called.arguments, choice.finish_reason)
        assert choice.message.tool_calls is None
    assert found == ("weather", '{"city": "Rome"}', "function_call")
    tools = engine.requests[0].tools
    assert tools is not None
    assert (tools.choice, tools.parallel) == (NamedFunction(name="weather"), False)


def test_variables_reach_the_template(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    ask(
        openai_client,
        reasoning_effort="low",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert engine.requests[0].template_variables == {"reasoning_effort": "low", "enable_thinking": False}


def test_the_same_fields_reach_the_engine_by_generate(live: httpx.Client, engine: FakeEngine) -> None:
    body = {
        "base_model": "owner/model",
        "messages": [QUESTION],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "required",
        "reasoning_effort": "none",
    }
    assert live.post("/generate", json=body).status_code == 200
    (asked,) = engine.requests
    assert asked.tools is not None
    assert asked.tools.choice == "required"
    assert asked.template_variables["enable_thinking"] is False


@pytest.mark.parametrize(
    "extra",
    [{"tools": [{"function": FUNCTION}]}, {"reasoning_effort": "low"}, {"chat_template_kwargs": {"a": 1}}],
)
def test_a_prompt_has_no_template_that_could_take_them(
    live: httpx.Client, engine: FakeEngine, extra: dict[str, Any]
) -> None:
    response = live.post("/generate", json={"base_model": "owner/model", "prompt": "Hi", **extra})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == next(iter(extra))
