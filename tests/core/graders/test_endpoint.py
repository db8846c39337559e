"""The client of an OpenAI-compatible endpoint, against a server of its own."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.core.graders.endpoint import JudgeEndpoint
from app.core.graders.grades import GradeErrorKind, GradingFailed, JudgeUsage
from app.core.graders.judges import JudgeAnswer, question
from app.core.graders.shapes import LabelModelGrader, ScoreModelGrader, grader_adapter
from app.core.settings import Settings
from tests.core.graders.test_shapes import VALID

NAMESPACES = {"item": {"answer": "Oslo"}, "sample": {"output_text": "oslo"}}
SAMPLING = {"temperature": 0.5, "max_completions_tokens": 99, "seed": 3, "reasoning_effort": "low"}
USAGE = {"prompt_tokens": 12, "completion_tokens": 3}


def completion(content: str | None = '{"result": 1}', **message: Any) -> httpx.Response:
    choice = {"message": {"role": "assistant", "content": content, **message}}
    return httpx.Response(200, json={"choices": [choice], "usage": USAGE})


def ask(respond: Callable[[httpx.Request], httpx.Response], kind: str = "score_model") -> JudgeAnswer:
    settings = Settings(judge_url="https://judge.example/v1/", judge_api_key=SecretStr("sk-1"))
    grader = grader_adapter.validate_python(VALID[kind] | {"sampling_params": SAMPLING})
    assert isinstance(grader, ScoreModelGrader | LabelModelGrader)

    async def talk() -> JudgeAnswer:
        endpoint = JudgeEndpoint(settings, httpx.MockTransport(respond))
        try:
            return await endpoint.ask(question(grader, NAMESPACES))
        finally:
            await endpoint.close()

    return asyncio.run(talk())


def test_a_chat_completion_with_a_schema_is_asked_for() -> None:
    seen: list[httpx.Request] = []
    answer = ask(lambda request: seen.append(request) or completion(), "label_model")

    body = json.loads(seen[0].content)
    assert (seen[0].url, seen[0].headers["authorization"]) == (
        "https://judge.example/v1/chat/completions",
        "Bearer sk-1",
    )
    assert body["messages"] == [{"role": "user", "content": "Grade oslo against Oslo."}]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["result"]["enum"] == ["good", "bad"]
    assert (body["max_completion_tokens"], body["temperature"], body["seed"]) == (99, 0.5, 3)
    assert answer == JudgeAnswer('{"result": 1}', JudgeUsage(12, 3), body["model"])


def test_a_busy_endpoint_is_asked_again() -> None:
    responses = [
        httpx.Response(429, headers={"retry-after": "0"}),
        httpx.Response(503, headers={"retry-after": "0"}),
    ]

    assert ask(lambda _: responses.pop() if responses else completion()).text == '{"result": 1}'


@pytest.mark.parametrize(
    ("response", "kind", "problem"),
    [
        (
            httpx.Response(401, json={"error": {"message": "Incorrect API key"}}),
            GradeErrorKind.JUDGE_SERVER,
            "status 401: Incorrect API key",
        ),
        (httpx.Response(404, text="no"), GradeErrorKind.JUDGE_SERVER, "status 404, and not what"),
        (
            httpx.Response(200, json={"choices": []}),
            GradeErrorKind.JUDGE_SERVER,
            "not what a chat completion is",
        ),
        (
            httpx.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "Quota"}}),
            GradeErrorKind.JUDGE_SERVER,
            "status 429: Quota",
        ),
        (completion(None, refusal="I can't."), GradeErrorKind.JUDGE_REFUSAL, "The model refused: I can't."),
    ],
)
def test_failures_are_named(response: httpx.Response, kind: GradeErrorKind, problem: str) -> None:
    with pytest.raises(GradingFailed, match=problem) as caught:
        ask(lambda _: response)

    assert caught.value.kind is kind
