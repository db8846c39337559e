"""How items become the turns that a chat template renders."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from app.api.openai.responses.history import as_turns
from app.api.openai.responses.items import Item
from app.core.chat.json_limits import MAX_LEVELS
from app.core.errors import InvalidRequest

items_adapter: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


def turns(*items: dict[str, Any], instructions: str | None = None) -> list[dict[str, Any]]:
    found = as_turns(instructions, items_adapter.validate_python(list(items)), sent_count=len(items))
    return [turn.model_dump(exclude_defaults=True) for turn in found]


def said(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def call(call_id: str = "call_1", arguments: str = '{"id": "7"}', **fields: Any) -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": "show_job",
        "arguments": arguments,
        **fields,
    }


def output(call_id: str = "call_1", text: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}


CALLED = {"name": "show_job", "arguments": {"id": "7"}, "id": "call_1"}
RESULT = {"role": "tool", "content": "done", "tool_call_id": "call_1", "name": "show_job"}


def test_instructions_and_system_messages_at_the_beginning_are_one_turn() -> None:
    found = turns(
        said("developer", "In English."), said("user", "Hi"), said("system", "Now."), instructions="Be brief."
    )
    assert found == [
        {"role": "system", "content": "Be brief.\n\nIn English."},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Now."},
    ]


def test_what_the_model_thought_said_and_called_is_one_turn() -> None:
    found = turns(
        said("user", "Is 7 done?"),
        thought("I must look."),
        said("assistant", "One moment."),
        call(),
        call("call_2"),
        output(),
        output("call_2"),
        thought("It is."),
        said("assistant", "Yes."),
    )
    assert found == [
        {"role": "user", "content": "Is 7 done?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "tool_calls": [CALLED, {**CALLED, "id": "call_2"}],
            "reasoning": "I must look.",
        },
        RESULT,
        {**RESULT, "tool_call_id": "call_2"},
        {"role": "assistant", "content": "Yes.", "reasoning": "It is."},
    ]


def test_two_answers_in_a_row_are_two_turns() -> None:
    found = turns(said("user", "Hi"), said("assistant", "A"), said("assistant", "B"))
    assert [turn["content"] for turn in found] == ["Hi", "A", "B"]


def test_parts_are_put_together_and_a_refusal_is_text() -> None:
    found = turns(
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        }
        | {"type": "message"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        said("user", "Why?"),
        call(),
        output(text=[{"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}]),
    )
    assert [turn["content"] for turn in found] == ["ab", "No.", "Why?", "", "xy"]


def test_a_call_that_was_cut_short_is_left_out() -> None:
    found = turns(said("user", "Hi"), call(arguments='{"id', status="incomplete"), said("user", "Go on."))
    assert [turn["role"] for turn in found] == ["user", "user"]


def test_a_summary_stands_for_thoughts_that_another_service_hides() -> None:
    hidden = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "It looked."}],
        "encrypted_content": "gAAAA",
    }
    assert turns(said("user", "Hi"), hidden, said("assistant", "Yes."))[1]["reasoning"] == "It looked."


@pytest.mark.parametrize("arguments", ["", "{}"])
def test_a_call_may_have_no_arguments(arguments: str) -> None:
    assert turns(call(arguments=arguments))[0]["tool_calls"][0]["arguments"] == {}


DEEP = '{"a":' * (MAX_LEVELS + 1) + "1" + "}" * (MAX_LEVELS + 1)


@pytest.mark.parametrize(
    "arguments",
    ["[]", "no", '{"a": NaN}', '{"a": 1', DEEP, "[" * 200_000, '{"a": ' + "9" * 5000 + "}"],
    ids=["list", "text", "NaN", "cut", "deep", "very deep", "long number"],
)
def test_arguments_that_the_engine_can_t_read_are_refused(arguments: str) -> None:
    with pytest.raises(InvalidRequest, match="'call_1'") as caught:
        turns(said("user", "Hi"), call(arguments=arguments))
    assert caught.value.param == "input.1.arguments"


def test_half_of_a_surrogate_pair_in_arguments_is_replaced() -> None:
    assert turns(call(arguments='{"a": "\\ud83d"}'))[0]["tool_calls"][0]["arguments"] == {"a": "?"}


def test_an_output_before_its_call_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no function call 'call_1'"):
        turns(output(), call())
