"""Histories as other services' clients send them: what they carry besides the text breaks nothing."""

from typing import Any

import httpx
import pytest

from tests.fakes import FakeEngine

QUESTION: dict[str, Any] = {"role": "user", "content": "Hi"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "Hello"}


def post(live: httpx.Client, message: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "helper", "messages": [QUESTION, message, QUESTION], **fields}
    return live.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    "extra",
    [
        {"provider_specific_fields": {"refusal": None}},
        {"reasoning": "So.", "reasoning_details": [{"type": "reasoning.text", "text": "So."}]},
        {"cache_control": {"type": "ephemeral"}},
        {"thinking_blocks": [{"type": "thinking", "thinking": "So."}]},
        {"images": [], "citations": ["https://example.org"]},
        {"parsed": {"a": 1}},
        {"annotations": [{"type": "url_citation", "url_citation": {"url": "https://example.org"}}]},
        {"tool_call_id": None, "function_call": None, "tool_calls": None, "of_any_vendor": None},
        {"content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}, "id": None}]},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_fields_of_other_vendors_in_a_history_change_nothing(
    live: httpx.Client, engine: FakeEngine, extra: dict[str, Any]
) -> None:
    assert post(live, ANSWER | extra).status_code == 200
    turns = engine.requests[0].messages or []
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Hi"),
    ]


CACHED = {"cache_control": {"type": "ephemeral"}}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": None}
CALL = {
    "id": "call_1",
    "type": "function",
    "index": 0,
    "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}},
    "provider_specific_fields": {"thought_signature": "x"},
    "extra_content": {"google": {}},
}


def test_an_agent_s_history_may_have_a_mark_of_a_cache_wherever_a_client_puts_one(
    live: httpx.Client, engine: FakeEngine
) -> None:
    part = {"type": "text", "text": "Done", **CACHED}
    messages = [
        {"role": "system", "content": [part], **CACHED},
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [CALL | CACHED], "thinking_blocks": []},
        {"role": "tool", "tool_call_id": "call_1", "name": "f", "content": [part], **CACHED},
    ]
    tools = [{"type": "function", "function": FUNCTION | CACHED, **CACHED}]
    body = {"model": "helper", "messages": messages, "tools": tools, **CACHED}
    assert live.post("/v1/chat/completions", json=body).status_code == 200
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi", **CACHED}], **CACHED},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}", **CACHED},
        {"type": "function_call_output", "call_id": "call_1", "output": "Done", **CACHED},
    ]
    tools = [{"type": "function", **FUNCTION, **CACHED}]
    asked = {"model": "helper", "input": items, "tools": tools}
    assert live.post("/v1/responses", json=asked).status_code == 200
    assert len(engine.requests) == 2


def test_unknown_parameters_that_are_null_mean_nothing(live: httpx.Client, engine: FakeEngine) -> None:
    assert post(live, ANSWER, chat_template_kwargs=None, of_any_vendor=None).status_code == 200
    completion = {"model": "helper", "prompt": "Hi", "of_any_vendor": None}
    assert live.post("/v1/completions", json=completion).status_code == 200


@pytest.mark.parametrize(
    ("extra", "param"),
    [({"contents": "x"}, "messages.1.contents"), ({"prefix": True}, "messages.1.prefix")],
)
def test_another_unknown_field_is_named(
    live: httpx.Client, engine: FakeEngine, extra: dict[str, Any], param: str
) -> None:
    response = post(live, ANSWER | extra)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
