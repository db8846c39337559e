"""What chat answers hold besides text: thoughts and calls, as the official client reads them."""

import json
from typing import Any

import openai
import pytest

from app.core.engine.messages import MadeToken, ReasoningDelta, Reply, TokenDelta, ToolCallDelta
from tests.fakes import FINISHED, FakeEngine

HI: list[Any] = [{"role": "user", "content": "Hi"}]
TOKEN = MadeToken(token_id=9, bytes=[0x61], logprob=-2.5, top=[])
CALLS_END = FINISHED.model_copy(
    update={
        "finish_reason": "tool_calls",
        "usage": FINISHED.usage.model_copy(update={"completion_tokens": 9, "reasoning_tokens": 4}),
    }
)
CALLING: list[Reply] = [
    ReasoningDelta(text="Which "),
    ReasoningDelta(text="city?"),
    ToolCallDelta(index=0, id="call_1", name="weather"),
    ToolCallDelta(index=0, arguments='{"city": '),
    ToolCallDelta(index=0, arguments='"Rome"}'),
    ToolCallDelta(index=1, id="call_2", name="time", arguments="{}"),
    CALLS_END,
]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "helper", "messages": HI, **options})


def test_calls_and_thoughts_of_an_answer_are_apart_from_its_text(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [*CALLING]
    completion = ask(openai_client)
    (choice,) = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.reasoning_content == "Which city?"
    assert [
        (call.id, call.type, call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls
    ] == [("call_1", "function", "weather", {"city": "Rome"}), ("call_2", "function", "time", {})]
    assert completion.usage.completion_tokens_details.reasoning_tokens == 4


def test_streamed_calls_are_put_together_by_the_official_client(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [*CALLING]
    with openai_client.chat.completions.stream(model="helper", messages=HI) as stream:
        thoughts = [
            event.chunk.choices[0].delta.reasoning_content
            for event in stream
            if event.type == "chunk" and "reasoning_content" in event.chunk.choices[0].delta.model_extra
        ]
        choice = stream.get_final_completion().choices[0]
    assert "".join(thoughts) == "Which city?"
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"city": "Rome"}', "{}"]
    assert choice.finish_reason == "tool_calls"


def test_an_answer_of_text_alone_has_no_field_of_thoughts_or_calls(openai_client: openai.OpenAI) -> None:
    message = openai_client.chat.completions.with_raw_response.create(model="helper", messages=HI).text
    found = json.loads(message)["choices"][0]["message"]
    assert found == {"role": "assistant", "content": "Hello", "refusal": None}


@pytest.mark.parametrize("stream", [False, True])
def test_a_withdrawn_call_is_text(openai_client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    engine.script = [
        ToolCallDelta(index=0, id="call_1", name="weather", arguments='{"city'),
        ToolCallDelta(index=0, is_withdrawn=True),
        TokenDelta(text='<tool_call>{"name": "weather", "arguments": {"city'),
        FINISHED,
    ]
    answer = ask(openai_client, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None
    assert text == '<tool_call>{"name": "weather", "arguments": {"city'


def test_log_probabilities_are_those_of_the_text(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [
        ReasoningDelta(text="b", tokens=[TOKEN.model_copy(update={"token_id": 8})]),
        TokenDelta(text="a", tokens=[TOKEN]),
        FINISHED,
    ]
    (choice,) = ask(openai_client, logprobs=True).choices
    assert [token.token for token in choice.logprobs.content] == ["a"]


@pytest.mark.parametrize(
    "content", ["one two", [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]]
)
def test_a_prediction_reaches_the_engine_and_its_tokens_are_counted(
    content: Any, openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    timings = FINISHED.timings.model_copy(update={"drafted_tokens": 7, "accepted_tokens": 5})
    engine.script = [TokenDelta(text="one"), FINISHED.model_copy(update={"timings": timings})]

    predicted = ask(openai_client, prediction={"type": "content", "content": content})
    plain = ask(openai_client)

    assert [one.prediction for one in engine.requests] == ["one two", None]
    details = predicted.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (5, 2)
    details = plain.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)


def test_a_prediction_of_another_kind_is_refused(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(openai_client, prediction={"type": "tokens", "content": "one"})
    assert refused.value.param == "prediction.type"
