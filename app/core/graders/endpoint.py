"""A model that grades at another server: a client of an OpenAI-compatible endpoint."""

import asyncio
from typing import Any

import httpx

from app.core.graders.grades import GradeErrorKind, GradingFailed, JudgeUsage
from app.core.graders.judges import JudgeAnswer, JudgeQuestion
from app.core.settings import Settings

_ATTEMPTS = 4
_CONNECT_SECONDS = 10
_MAX_WAIT_SECONDS = 30.0
_MAX_CONNECTIONS = 16
_MAX_REASON = 500
_AGAIN = {408, 409, 429, 500, 502, 503, 504}


class JudgeEndpoint:
    """Asks models of the endpoint `TUNESMITH_JUDGE_URL` with the key `TUNESMITH_JUDGE_API_KEY`."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        key = settings.judge_api_key
        self._http = httpx.AsyncClient(
            base_url=settings.judge_url,
            headers={"authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx.Timeout(settings.judge_seconds, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS),
            transport=transport,
        )

    async def ask(self, question: JudgeQuestion) -> JudgeAnswer:
        """Returns the model's answer. Asks again where the endpoint is busy. Raises GradingFailed."""
        for attempt in range(_ATTEMPTS):
            is_last = attempt == _ATTEMPTS - 1
            try:
                response = await self._http.post("chat/completions", json=_body(question))
            except httpx.HTTPError as error:
                if is_last:
                    raise _server_error(f"{type(error).__name__} {error}".strip()) from None
                await asyncio.sleep(2.0**attempt)
                continue
            if response.status_code not in _AGAIN or is_last:
                return _read(response, question.model)
            await asyncio.sleep(_wait_seconds(response, attempt))
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


def _body(question: JudgeQuestion) -> dict[str, Any]:
    sampling = question.sampling.model_dump(exclude_none=True)
    if "max_completions_tokens" in sampling:
        # The grader's field has OpenAI's spelling, that of the request for an answer another one.
        sampling["max_completion_tokens"] = sampling.pop("max_completions_tokens")
    schema = {"name": question.schema_name, "schema": question.schema, "strict": True}
    return {
        "model": question.model,
        "messages": [{"role": role, "content": content} for role, content in question.messages],
        "response_format": {"type": "json_schema", "json_schema": schema},
        **sampling,
    }


def _wait_seconds(response: httpx.Response, attempt: int) -> float:
    try:
        wait = float(response.headers.get("retry-after", ""))
    except ValueError:
        wait = 2.0**attempt
    return min(max(wait, 0.0), _MAX_WAIT_SECONDS)


def _read(response: httpx.Response, model: str) -> JudgeAnswer:
    try:
        content = response.json()
        if response.is_error:
            raise _server_error(f"status {response.status_code}: {content['error']['message']}"[:_MAX_REASON])
        message = content["choices"][0]["message"]
        if message.get("refusal"):
            reason = f"The model refused: {message['refusal']}"[:_MAX_REASON]
            raise GradingFailed(GradeErrorKind.JUDGE_REFUSAL, reason)
        usage = content.get("usage") or {}
        used = JudgeUsage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        return JudgeAnswer(str(message["content"] or ""), used, model)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _server_error(f"status {response.status_code}, and not what a chat completion is") from None


def _server_error(reason: str) -> GradingFailed:
    return GradingFailed(GradeErrorKind.JUDGE_SERVER, f"The endpoint of grading models failed: {reason}.")
