"""Every error under /v1 reaches the official client as its own exception class, with its message."""

from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from app.api.openai import chat
from app.core.engine.messages import Failed, TokenDelta
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.fakes import FINISHED, Act, FakeEngine

HI = [{"role": "user", "content": "Hi"}]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "helper", "messages": HI, **options})


def failed(kind: Any, code: str = "its_code", **fields: Any) -> Failed:
    return Failed(kind=kind, code=code, message="No.", **fields)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("said", "error", "code"),
    [
        (failed("invalid", "context_length_exceeded"), openai.BadRequestError, "context_length_exceeded"),
        (failed("invalid", "model_gated"), openai.PermissionDeniedError, "model_gated"),
        (failed("not_found", "model_missing"), openai.NotFoundError, "model_not_found"),
        (failed("busy", "queue_full"), openai.RateLimitError, "queue_full"),
        (failed("internal"), openai.InternalServerError, "its_code"),
        (failed("unavailable", "gpu_taken"), openai.InternalServerError, "gpu_taken"),
    ],
)
def test_a_refusal_of_the_engine_has_its_class(
    openai_client: openai.OpenAI, engine: FakeEngine, said: Failed, error: Any, code: str, streamed: bool
) -> None:
    engine.script = [said]
    with pytest.raises(error) as caught:
        ask(openai_client, stream=streamed)
    assert caught.value.code == code
    assert caught.value.body["message"] == "No."
    assert caught.value.request_id.startswith("req_")


def test_a_full_queue_says_when_to_come_back(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [failed("busy", "queue_full", retry_after_seconds=7)]
    with pytest.raises(openai.RateLimitError) as caught:
        ask(openai_client)
    assert caught.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "chat_template_kwargs"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 200}, "n"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_named(
    openai_client: openai.OpenAI, engine: FakeEngine, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(openai_client, **options)
    assert caught.value.param == param
    assert param in str(caught.value)
    assert engine.requests == []


TEXT = {"type": "text", "text": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [TEXT, IMAGE]}]},
            "messages.0.content.1: image parts are not supported.",
        ),
        (
            {"messages": [{"role": "user", "content": [TEXT, {"type": "text"}]}]},
            "messages.0.content.1.text is missing.",
        ),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content is empty."),
        ({"messages": []}, "messages is empty."),
        ({"stop": [""]}, "stop.0 is empty."),
        ({"stop": ""}, "stop is empty."),
        ({"stop": ["x", 5]}, "stop.1: must be a valid string (found 5)."),
        ({"stop": 5}, "stop: must be a valid string; or: must be a valid list (found 5)."),
    ],
)
def test_a_message_names_the_branch_that_was_meant(live: httpx.Client, options: Any, message: str) -> None:
    body = {"model": "helper", "messages": HI, **options}
    response = live.post("/v1/chat/completions", json=body)
    assert response.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, "x"], "prompt.1: must be a valid integer"),
        (["x", 1], "prompt.1: must be a valid string"),
        ([[1], ["x"]], "prompt.1.0: must be a valid integer"),
        ([], "prompt is empty."),
        ([[]], "prompt.0 is empty."),
    ],
)
def test_a_wrong_item_of_a_prompt_is_named(live: httpx.Client, prompt: Any, message: str) -> None:
    response = live.post("/v1/completions", json={"model": "helper", "prompt": prompt})
    assert response.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
    ],
)
def test_an_unsupported_parameter_of_completions_is_named(
    openai_client: openai.OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.completions.create(**{"model": "helper", "prompt": "x", **options})
    assert caught.value.param == param


def test_an_unknown_model_is_not_found(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(openai_client, model="nobody")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "GET /v1/models" in str(caught.value)


def test_a_model_off_the_allow_list_is_not_permitted(
    openai_client: openai.OpenAI, settings: Settings
) -> None:
    settings.allowed_models = ["owner/other"]
    with pytest.raises(openai.PermissionDeniedError):
        ask(openai_client, model="owner/model")


def test_a_request_without_a_key_is_refused(openai_client: openai.OpenAI, database: Database) -> None:
    with database.transaction() as session:
        keys.create(session, "laptop")
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(openai_client)
    assert caught.value.code == "unauthorized"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1", 404), ("GET", "/v1/nowhere", 404), ("PUT", "/v1/chat/completions", 405)],
)
def test_the_framework_s_own_errors_have_openais_format(
    live: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = live.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 1}'])
def test_a_body_that_is_not_understood_is_a_bad_request(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_refused_in_openais_format(
    client: TestClient, settings: Settings
) -> None:
    settings.max_body_bytes = 100
    answer = client.post("/v1/chat/completions", content=b"x" * 101)
    assert answer.status_code == 413
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_internal_error_does_not_show_its_cause(
    settings: Settings, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "find_target", lambda *_: 1 / 0)
    with TestClient(create_app(settings)) as client:
        answer = client.post("/v1/chat/completions", json={"model": "helper", "messages": HI})
    assert answer.status_code == 500
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "division" not in answer.text


def test_a_failure_in_mid_stream_raises_in_the_client(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="Hel"), failed("unavailable", "gpu_taken", hint="Wait.")]
    stream = iter(ask(openai_client, stream=True))
    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content == "Hel"
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "gpu_taken"
    assert caught.value.message == "No. Wait."


def test_an_engine_that_breaks_off_in_mid_stream_raises_in_the_client(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.BREAK]
    with pytest.raises(openai.APIError) as caught:
        list(ask(openai_client, stream=True))
    assert caught.value.code == "engine_failed"


def test_one_refusal_of_several_answers_is_the_refusal_of_all(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.scripts = [[TokenDelta(text="a"), FINISHED], [failed("busy", "queue_full")], [Act.HOLD]]
    with pytest.raises(openai.RateLimitError):
        ask(openai_client, n=3)
    assert engine.lost_its_client.wait(10)
