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
