"""Requests for responses that no honest client sends: none is a 500, and none takes long."""

from typing import Any

import httpx

from app.core.engine.messages import TokenDelta
from tests.api.openai.responses.contract import CALL
from tests.api.openai.responses.test_stored import HALF, post
from tests.fakes import FINISHED, FakeEngine

DEEP: Any = {}
for _ in range(150):
    DEEP = {"a": DEEP}
CALLED = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": ""}


def test_half_of_a_surrogate_pair_breaks_no_text(live: httpx.Client, engine: FakeEngine) -> None:
    texts: list[dict[str, Any]] = [
        {"input": HALF},
        {"input": [{"role": "user", "content": HALF}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": HALF}]}]},
        {"input": [CALLED | {"name": HALF}]},
        {
            "input": [
                CALLED | {"call_id": HALF},
                {"type": "function_call_output", "call_id": HALF, "output": ""},
            ]
        },
        {"input": [CALLED, {"type": "function_call_output", "call_id": "c", "output": HALF}]},
        {"input": [CALLED | {"arguments": f'{{"a": "{HALF}"}}'}]},
        {"input": [CALLED | {"arguments": '{"a": "\\ud83d"}'}]},
        {"input": [CALLED | {"id": HALF}]},
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": HALF}]}]},
        {"instructions": HALF},
        {"metadata": {HALF: HALF}},
        {"prompt_cache_key": HALF, "safety_identifier": HALF, "user": HALF},
        {"tools": [CALL | {"description": HALF}]},
        {"tools": [CALL | {"name": HALF}]},
        {"tools": [CALL | {"parameters": {HALF: HALF}}]},
        {"text": {"format": {"type": "json_schema", "name": HALF, "schema": {"title": HALF}}}},
        {"stop": HALF},
        {"model": HALF},
    ]
    for fields in texts:
        for options in ({}, {"stream": True}, {"background": True}):
            answer = post(live, **fields, **options)
            assert answer.status_code in (200, 400, 404), (fields, options, answer.text)


def test_half_of_a_surrogate_pair_from_the_engine_breaks_no_answer(
    live: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="a").model_dump_json().replace("a", "\\ud83d", 1), FINISHED]
    assert post(live).status_code in (200, 503)


def test_what_is_nested_too_deeply_is_refused(live: httpx.Client, engine: FakeEngine) -> None:
    for fields in (
        {"tools": [CALL | {"parameters": DEEP}]},
        {"input": [{"role": "user", "content": DEEP}]},
        {"input": DEEP},
        {"metadata": {"a": DEEP}},
        {"tool_choice": DEEP},
        {"reasoning": {"context": DEEP}},
    ):
        assert post(live, **fields).status_code == 400, fields.keys()
    levels = 100_000
    body = '{"model": "helper", "input": ' + "[" * levels + "]" * levels + "}"
    answer = live.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413)


def test_a_schema_of_any_depth_is_the_engine_s_matter(live: httpx.Client, engine: FakeEngine) -> None:
    deep = {"format": {"type": "json_schema", "name": "it", "schema": DEEP}}
    for options in ({}, {"background": True}):
        assert post(live, text=deep, **options).status_code in (200, 400)


def test_sizes_have_bounds(live: httpx.Client, engine: FakeEngine) -> None:
    for fields in (
        {"tools": [CALL | {"name": str(number)} for number in range(129)]},
        {"tools": [CALL | {"name": "x" * 129}]},
        {"previous_response_id": "x" * 129},
        {"input": [CALLED | {"call_id": "x" * 129}]},
        {"input": [CALLED | {"id": "x" * 129}]},
        {"max_output_tokens": 2**63},
        {"max_output_tokens": 10**400},
        {"max_tool_calls": 10**400},
        {"top_logprobs": 21},
        {"metadata": {"a": "x" * 513}},
        {"metadata": {"x" * 65: "a"}},
        {"include": ["message.output_text.logprobs"] * 9},
    ):
        assert post(live, **fields).status_code == 400, fields.keys()
    assert post(live, input=[{"role": "user", "content": ""}] * 10_001).status_code == 413
    assert post(live, input=[{"role": "user", "content": "Hi"}] * 1000).status_code == 200
