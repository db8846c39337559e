"""A prompt as the body of vLLM's `/v1/completions`, and the chunks of its answer.

Prompts are sent as token ids and answers come back as token ids, so that chat templates, thoughts, calls of
functions and stop strings are the same as with the built-in engine. Shapes follow vLLM's
`entrypoints/openai/completion/protocol.py`.
"""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app.core.engine.messages import OutputSchema
from app.core.errors import InvalidRequest
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.prompt_scores import ScoredToken
from worker.inference.batching.sequence import SampledToken

_TOKEN_ID = "token_id:"
_DISABLED_TOP_K = 0


class _Logprobs(BaseModel):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []


class _Choice(BaseModel):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Chunk(BaseModel):
    choices: list[_Choice]


@dataclass(frozen=True)
class AnswerPart:
    """Tokens of an answer, and why it ends after them, if it does: vLLM's `finish_reason`."""

    tokens: list[SampledToken]
    finish_reason: str | None


def check_supported(prompt: Prompt) -> None:
    """Raise InvalidRequest for what is not generated text."""
    if prompt.embeds:
        raise InvalidRequest("Embeddings are not available through vLLM.", param="model")
    if prompt.is_scored:
        raise InvalidRequest(
            "Log-probabilities of the prompt are not available through vLLM.",
            hint="A worker with the built-in engine has them.",
        )


def make_body(prompt: Prompt, model: str, max_tokens: int) -> dict[str, Any]:
    """The body of the request. Stop strings are not sent: the engine looks for them in the text."""
    sampling = prompt.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt.token_ids),
        "max_tokens": max_tokens,
        "stream": True,
        "return_token_ids": True,
        "add_special_tokens": False,
        "skip_special_tokens": False,
        "stop_token_ids": sorted(prompt.end_ids),
        "temperature": 0.0 if sampling.is_greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or _DISABLED_TOP_K,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": prompt.seed,
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
    if sampling.logprobs is not None:
        body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    source = prompt.grammar_source
    if isinstance(source, OutputSchema):
        body["structured_outputs"] = {"json": json.loads(source.source)}
    elif source is not None:
        # Lark, as vLLM's backend `guidance` reads it.
        body["structured_outputs"] = {"grammar": source.text}
    return body


def read_part(content: str, top_count: int | None) -> AnswerPart:
    """The tokens in one event of the stream. Raises ValueError, as for an error in its place."""
    chunk = _Chunk.model_validate_json(content)
    tokens: list[SampledToken] = []
    reason = None
    for choice in chunk.choices:
        scores = _scores(choice.logprobs, top_count) if choice.logprobs else []
        ids = choice.token_ids or []
        tokens += [
            SampledToken(token_id, scores[place] if scores else None) for place, token_id in enumerate(ids)
        ]
        reason = choice.finish_reason or reason
    return AnswerPart(tokens, reason)


def _scores(logprobs: _Logprobs, top_count: int | None) -> list[ScoredToken]:
    # vLLM adds the token made to the likeliest ones where it is not among them.
    likeliest = [
        sorted((top or {}).items(), key=lambda one: -one[1])[: top_count or 0]
        for top in logprobs.top_logprobs
    ]
    tops = [tuple((int(name.removeprefix(_TOKEN_ID)), value) for name, value in top) for top in likeliest]
    tops += [()] * (len(logprobs.token_logprobs) - len(tops))
    values = [0.0 if value is None else value for value in logprobs.token_logprobs]
    return [ScoredToken(value, top) for value, top in zip(values, tops, strict=True)]
