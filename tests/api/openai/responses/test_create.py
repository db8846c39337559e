"""Responses as the official client makes them; the engine behind them is scripted."""

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from app.core.engine.messages import MadeToken, ReasoningDelta, TokenDelta, TokenProbability, ToolCallDelta
from tests.api.openai.responses.contract import CALL, create
from tests.fakes import FINISHED, FakeEngine

CUT = FINISHED.model_copy(update={"finish_reason": "length"})
CALLED = FINISHED.model_copy(update={"finish_reason": "tool_calls"})
PLAIN = MadeToken(
    token_id=9,
    bytes=[0x61],
    logprob=-2.5,
    top=[TokenProbability(token_id=9, bytes=[0x61], logprob=-2.5)],
)


def test_a_response_has_every_field_of_openai_s(openai_client: openai.OpenAI) -> None:
    response = create(openai_client, metadata={"a": "b"}, user="me", instructions="Be brief.")
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.model) == ("response", "completed", "helper")
    assert response.created_at > 1_700_000_000
    assert response.completed_at >= response.created_at
    assert (response.error, response.incomplete_details) == (None, None)
    assert response.output_text == "Hello"
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 2, 5)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (0, 0)
    assert (response.metadata, response.user, response.instructions) == ({"a": "b"}, "me", "Be brief.")
    assert (response.temperature, response.top_p, response.truncation) == (1, 1, "disabled")
    assert (response.tool_choice, response.tools, response.parallel_tool_calls) == ("auto", [], True)
    assert response.text.format.type == "text"


def test_parameters_reach_the_engine(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    create(
        openai_client,
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=3,
        include=["message.output_text.logprobs"],
        extra_body={"seed": 5, "stop": "END", "top_k": 4, "repetition_penalty": 1.1},
    )
    sampling = engine.requests[0].sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.9)
    assert (sampling.logprobs, sampling.seed, sampling.stop) == (3, 5, ["END"])
    assert (sampling.top_k, sampling.repetition_penalty) == (4, 1.1)


def test_what_changes_nothing_is_accepted(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    response = create(
        openai_client,
        background=False,
        include=["reasoning.encrypted_content", "file_search_call.results"],
        max_tool_calls=3,
        prompt_cache_key="key",
        prompt_cache_retention="24h",
        safety_identifier="someone",
        service_tier="auto",
        stream=False,
        text={"verbosity": "medium"},
        tools=[],
        tool_choice="auto",
        truncation="disabled",
        user="me",
        extra_body={"conversation": None, "prompt": None, "seed": None, "new_field": None},
    )
    assert (response.output_text, response.prompt_cache_key, response.service_tier) == (
        "Hello",
        "key",
        "default",
    )
    assert engine.requests[0].sampling.logprobs is None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *(
        ({"tools": [{"type": kind}]}, "tools.0", f"'{kind}'")
        for kind in ("web_search", "file_search", "code_interpreter", "computer", "mcp", "image_generation")
    ),
    ({"tools": [{"type": "custom", "name": "patch"}]}, "tools.0", "'custom'"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice", "'file_search'"),
    ({"tool_choice": "required"}, "tool_choice", "needs `tools`"),
    ({"tools": [CALL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice", "'other'"),
    ({"tools": [CALL, CALL]}, "tools.1.name", "'show_job'"),
    ({"conversation": "conv_1"}, "conversation", "not supported here"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "not supported here"),
    ({"truncation": "auto"}, "truncation", "not supported here"),
    ({"background": True, "stream": True}, "background", "together with `stream`"),
    ({"background": True, "store": False}, "background", "stored"),
    ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
    ({"include": ["everything"]}, "include.0", "everything"),
    ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
    ({"reasoning": {"effort": "some"}}, "reasoning.effort", "'none'"),
    ({"n": 2}, "n", "no field n"),
    ({"messages": []}, "messages", "no field messages"),
    ({"input": []}, "input", "empty"),
    ({"input": [{"type": "computer_call"}]}, "input.0", "'computer_call'"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input.0.content.0",
        "'input_image'",
    ),
    ({"input": [{"role": "robot", "content": "Hi"}]}, "input.0.role", "'assistant'"),
    (
        {"input": [{"type": "function_call_output", "call_id": "call_1", "output": "1"}]},
        "input.0.call_id",
        "'call_1'",
    ),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"}]},
        "input.0.arguments",
        "not a JSON object",
    ),
]


def test_what_is_not_supported_is_refused_by_name(live: httpx.Client, engine: FakeEngine) -> None:
    for fields, param, words in REFUSED:
        answer = live.post("/v1/responses", json={"model": "helper", "input": "Hi", **fields})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error"), error
        assert words in error["message"]
    assert engine.requests == []


def test_an_unknown_model_is_not_found(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'nobody'"):
        create(openai_client, model="nobody")


def test_an_answer_that_was_cut_is_incomplete(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="Hel"), CUT]
    response = create(openai_client, max_output_tokens=1)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output[0].status, response.output_text) == ("incomplete", "Hel")
    assert response.completed_at is None


def test_an_answer_without_anything_is_an_empty_message(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text=""), FINISHED]
    response = create(openai_client)
    assert [(item.type, item.content[0].text) for item in response.output] == [("message", "")]


def test_thoughts_and_calls_are_items(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    usage = FINISHED.usage.model_copy(update={"reasoning_tokens": 1})
    engine.script = [
        ReasoningDelta(text="I must "),
        ReasoningDelta(text="look."),
        TokenDelta(text="One moment."),
        ToolCallDelta(index=0, id="call_1", name="show_job", arguments='{"id":'),
        ToolCallDelta(index=0, arguments='"7"}'),
        ToolCallDelta(index=1, id="call_2", name="show_job", arguments="{}"),
        CALLED.model_copy(update={"usage": usage}),
    ]
    response = create(openai_client, tools=[CALL], parallel_tool_calls=True)
    thought, message, first, second = response.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "I must look.", [])
    assert message.content[0].text == response.output_text == "One moment."
    assert (first.type, first.call_id, first.name) == ("function_call", "call_1", "show_job")
    assert (first.arguments, second.arguments, second.call_id) == ('{"id":"7"}', "{}", "call_2")
    assert len({item.id for item in response.output}) == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 1
    assert response.status == "completed"


def test_a_withdrawn_call_is_in_no_response(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [
        ToolCallDelta(index=0, id="call_1", name="show_job", arguments='{"id":'),
        ToolCallDelta(index=0, is_withdrawn=True),
        TokenDelta(text='{"id":oh'),
        FINISHED,
    ]
    assert [item.type for item in create(openai_client, tools=[CALL]).output] == ["message"]


def test_functions_reach_the_engine(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    other = {"type": "function", "name": "list_jobs"}
    create(openai_client, tools=[CALL, other], parallel_tool_calls=False)
    create(openai_client, tools=[CALL, other], tool_choice={"type": "function", "name": "list_jobs"})
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "show_job"}],
    }
    echoed = create(openai_client, tools=[CALL, other], tool_choice=allowed)
    create(openai_client, tools=[CALL], tool_choice="none")
    plain, named, some, none = (request.tools for request in engine.requests)
    assert plain is not None and named is not None and some is not None and none is not None  # noqa: PT018
    assert [(tool.name, tool.strict) for tool in plain.functions] == [
        ("show_job", True),
        ("list_jobs", False),
    ]
    assert plain.functions[0].parameters == CALL["parameters"]
    assert (plain.choice, plain.parallel) == ("auto", False)
    assert named.model_dump()["choice"] == {"name": "list_jobs"}
    assert ([tool.name for tool in some.functions], some.choice) == (["show_job"], "required")
    assert none.choice == "none"
    assert echoed.tool_choice.type == "allowed_tools"
    assert [tool.name for tool in echoed.tools] == ["show_job", "list_jobs"]


def test_effort_and_variables_reach_the_template(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    response = create(openai_client, reasoning={"effort": "low", "summary": "auto"})
    create(openai_client, reasoning={"effort": "none"})
    create(openai_client, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    assert [request.template_variables for request in engine.requests] == [
        {"reasoning_effort": "low"},
        {"enable_thinking": False, "thinking": False},
        {"enable_thinking": True},
    ]
    assert (response.reasoning.effort, response.reasoning.summary) == ("low", "auto")


def test_logprobs_are_those_of_the_text(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="a", tokens=[PLAIN]), TokenDelta(text="a", tokens=[PLAIN]), FINISHED]
    text = (
        create(openai_client, include=["message.output_text.logprobs"], top_logprobs=1).output[0].content[0]
    )
    assert [(one.token, one.logprob, one.bytes) for one in text.logprobs] == [("a", -2.5, [0x61])] * 2
    assert text.logprobs[0].top_logprobs[0].token == "a"


class City(BaseModel):
    """A class as the client's users have it."""

    city: str


def test_a_class_is_parsed(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text='{"city": "Oslo"}'), FINISHED]
    response = openai_client.responses.parse(model="helper", input="A city?", text_format=City)
    assert response.output_parsed == City(city="Oslo")
    asked = engine.requests[0].output_schema
    assert asked is not None
    assert (json.loads(asked.source)["properties"]["city"]["type"], asked.strict) == ("string", True)


def test_a_function_s_arguments_are_parsed(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [ToolCallDelta(index=0, id="call_1", name="City", arguments='{"city": "Oslo"}'), CALLED]
    tool = openai.pydantic_function_tool(City)["function"]
    response = openai_client.responses.parse(
        model="helper",
        input="A city?",
        tools=[{"type": "function", "strict": True, **tool}],  # type: ignore[list-item,misc]
    )
    (call,) = response.output
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Oslo"}


def test_any_json_object_may_be_asked_for(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    create(openai_client, text={"format": {"type": "json_object"}})
    asked = engine.requests[0].output_schema
    assert asked is not None
    assert json.loads(asked.source) == {"type": "object"}
