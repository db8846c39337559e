"""Turns of requests as the engine takes them, and what is refused, by name."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from app.api.chat.conversation import ChatMessageParam, as_turns
from app.core.engine.messages import ChatMessage
from app.core.errors import InvalidRequest

adapter = TypeAdapter(list[ChatMessageParam])
USER: dict[str, Any] = {"role": "user", "content": "Weather in Rome?"}


def calling(*, arguments: Any = '{"city": "Rome"}', **fields: Any) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **fields}


def turns(*messages: dict[str, Any]) -> list[ChatMessage]:
    return as_turns(adapter.validate_python([USER, *messages]))[1:]


def refusal(*messages: dict[str, Any]) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        turns(*messages)
    return caught.value.param, caught.value.message


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
def test_a_call_and_its_result(arguments: Any) -> None:
    parts = [{"type": "text", "text": "31"}, {"type": "text", "text": " °C"}]
    called, result = turns(
        calling(arguments=arguments), {"role": "tool", "tool_call_id": "a", "content": parts}
    )
    (call,) = called.tool_calls
    assert (called.content, call.id, call.name, call.arguments) == ("", "a", "weather", {"city": "Rome"})
    assert (result.role, result.content) == ("tool", "31 °C")
    assert (result.tool_call_id, result.name) == ("a", "weather")


def test_the_older_form_of_a_call_and_its_result() -> None:
    call = {"name": "weather", "arguments": "{}"}
    called, result = turns(
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "31"},
    )
    assert called.tool_calls[0].name == "weather"
    assert (result.role, result.name, result.tool_call_id) == ("tool", "weather", called.tool_calls[0].id)


def test_a_developer_is_the_system() -> None:
    assert turns({"role": "developer", "content": "Be brief."})[0].role == "system"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_of_an_assistants_turn_reach_the_template(field: str) -> None:
    assert turns({"role": "assistant", "content": "Hi", field: "Hm."})[0].reasoning == "Hm."
    assert turns({"role": "user", "content": "Hi", field: "Hm."})[0].reasoning is None


def test_thoughts_in_another_form_change_nothing() -> None:
    assert turns({"role": "assistant", "content": "Hi", "reasoning": {"effort": 1}})[0].reasoning is None


def test_no_arguments_are_none() -> None:
    assert turns(calling(arguments=""))[0].tool_calls[0].arguments == {}


@pytest.mark.parametrize(
    ("message", "param", "problem"),
    [
        ({"role": "user", "content": None}, "messages.1.content", "missing"),
        ({"role": "assistant"}, "messages.1.content", "missing"),
        ({**calling(), "role": "user"}, "messages.1.tool_calls", "assistant"),
        (
            {"role": "user", "content": "", "function_call": {"name": "f", "arguments": ""}},
            "messages.1.function_call",
            "assistant",
        ),
        (
            {**calling(), "function_call": {"name": "f", "arguments": ""}},
            "messages.1.function_call",
            "together",
        ),
        (calling(arguments="{"), "messages.1.tool_calls.0.function.arguments", "not a JSON object"),
        (calling(arguments="[1]"), "messages.1.tool_calls.0.function.arguments", "not a JSON object"),
        (calling(arguments='{"a": NaN}'), "messages.1.tool_calls.0.function.arguments", "not a JSON object"),
        ({"role": "tool", "content": "31"}, "messages.1.tool_call_id", "missing"),
        (
            {"role": "tool", "content": "31", "tool_call_id": "a"},
            "messages.1.tool_call_id",
            "there is no call 'a'",
        ),
        ({"role": "function", "content": "31"}, "messages.1.name", "missing"),
        ({"role": "function", "content": "31", "name": "f"}, "messages.1.name", "there is no call 'f'"),
    ],
)
def test_a_turn_that_makes_no_sense_is_refused_by_name(
    message: dict[str, Any], param: str, problem: str
) -> None:
    assert refusal(message)[0] == param
    assert problem in refusal(message)[1]


def test_a_result_must_come_after_its_call() -> None:
    result = {"role": "tool", "content": "31", "tool_call_id": "a"}
    assert refusal(result, calling())[0] == "messages.1.tool_call_id"
