"""POST /v1/embeddings: vectors of texts from a base model's hidden states, with an adapter or without."""

import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from app.api.chat.request_parts import RequestPart
from app.api.deps import Services, ServicesDep
from app.api.generate.answers import CLIENT_CLOSED_REQUEST, Answers, collect, unless_disconnected
from app.api.generate.served import answered_model, served_headers
from app.api.generate.use import RequestUse
from app.api.http.access.auth import CallerDep
from app.api.http.errors import EngineRefusal, dumps
from app.api.http.pacing import run_by_length
from app.api.openai.models import find_target
from app.api.openai.parameters import SUBJECT_DESCRIPTION, Tokens, as_prompts, count_parts, reject_parameter
from app.core.adapters.targets import Target
from app.core.engine.messages import Finished, GenerateRequest
from app.core.specs.job import QuantizationSpec

router = APIRouter()

# OpenAI's limit.
_MAX_INPUTS = 2048
# Texts of one request that are with the engine at a time: others' requests come between.
_AT_ONCE = 16
_FLOAT_BYTES = 4
_EXAMPLES: dict[str, Example] = {
    "texts": {
        "summary": "Several texts",
        "value": {"model": "SmolLM2-135M-Instruct", "input": ["Cancel a job", "Stop training"]},
    },
    "tokens": {
        "summary": "Token ids, and a vector as base64",
        "value": {"model": "SmolLM2-135M-Instruct", "input": [504, 2365], "encoding_format": "base64"},
    },
}
NonEmptyText = Annotated[str, Field(min_length=1)]


class EmbeddingBody(RequestPart):
    """Texts to embed."""

    model: str = Field(
        min_length=1, max_length=400, description="An alias, a base model's name, or an adapter's id or name."
    )
    input: (
        NonEmptyText
        | Annotated[list[NonEmptyText], Field(min_length=1, max_length=_MAX_INPUTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=_MAX_INPUTS, fail_fast=True)]
    ) = Field(description="A text, several, the ids of its tokens, or several lists of them.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float` (default): numbers; `base64`: little-endian 32-bit floats."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="Only the first so many numbers, again of length 1. No model here is trained for it.",
    )
    quantization: QuantizationSpec | None = Field(
        None, description="Not OpenAI's. For a base model: how its weights are held."
    )
    user: str | None = Field(None, description=SUBJECT_DESCRIPTION)


class EmbeddingRead(BaseModel):
    """The vector of a text."""

    object: Literal["embedding"] = Field("embedding", description="Always `embedding`.")
    index: int = Field(description="Counts the texts from 0.")
    embedding: list[float] | str = Field(description="Of length 1; as `encoding_format` says.")


class EmbeddingUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int = Field(description="Tokens read, of all texts.")
    total_tokens: int = Field(description="The same.")


class EmbeddingList(BaseModel):
    """The vectors of all texts, in their order."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[EmbeddingRead] = Field(description="The vectors.")
    model: str = Field(description="`model` as it was asked for; of an alias, the model that served.")
    usage: EmbeddingUsage = Field(description="Tokens read.")


@router.post("/embeddings", response_model=EmbeddingList, summary="Embed texts")
async def create_embeddings(
    body: Annotated[EmbeddingBody, Body(openapi_examples=_EXAMPLES)],
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """The mean of the model's last hidden states over the tokens of each text, scaled to length 1."""
    target = await find_target(services, body.model, body.quantization, subject=body.user)
    requests = await run_by_length(lambda: _make_requests(body, target), count_parts(body.input))
    use = RequestUse(services.usage_meter, caller, target.name)
    finished = await unless_disconnected(request, _embed(services, target, requests, use))
    if finished is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    # In a thread: two thousand vectors are millions of numbers.
    content = await to_thread.run_sync(_render, body, target, finished)
    return Response(content, headers=served_headers(target), media_type="application/json")


def _make_requests(body: EmbeddingBody, target: Target) -> list[GenerateRequest]:
    return [
        GenerateRequest(base_model=target.base_model, adapter=target.adapter, embeds=True, **prompt)
        for prompt in as_prompts(body.input)
    ]


async def _embed(
    services: Services, target: Target, requests: Sequence[GenerateRequest], use: RequestUse
) -> list[Finished]:
    """The engine's replies, in the order of the requests. Raises EngineRefusal and EngineFailed."""
    finished: list[Finished] = []
    for start in range(0, len(requests), _AT_ONCE):
        answers = Answers(services.engines, target.engine, requests[start : start + _AT_ONCE], use=use)
        try:
            finished += [answer.finished for answer in await collect(answers)]
        except EngineRefusal as refusal:
            is_of_text = refusal.failed.param == "prompt"
            raise (
                EngineRefusal(refusal.failed.model_copy(update={"param": "input"})) if is_of_text else refusal
            ) from None
        finally:
            await answers.close()
    return finished


def _render(body: EmbeddingBody, target: Target, finished: Sequence[Finished]) -> str:
    """The response as JSON. Raises InvalidRequest for more dimensions than there are."""
    read = sum(one.usage.prompt_tokens for one in finished)
    vectors = [_cut(base64.b64decode(one.embedding or ""), body.dimensions) for one in finished]
    is_base64 = body.encoding_format == "base64"
    return dumps(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector).decode() if is_base64 else _unpack(vector),
                }
                for index, vector in enumerate(vectors)
            ],
            "model": answered_model(target, body.model),
            "usage": {"prompt_tokens": read, "total_tokens": read},
        }
    )


def _cut(vector: bytes, dimensions: int | None) -> bytes:
    """The first numbers of a packed vector, scaled to length 1."""
    count = len(vector) // _FLOAT_BYTES
    if dimensions is None or dimensions == count:
        return vector
    if dimensions > count:
        reject_parameter("dimensions", f"the model's vectors have {count} numbers")
    values = _unpack(vector[: dimensions * _FLOAT_BYTES])
    length = math.hypot(*values) or 1.0
    return struct.pack(f"<{dimensions}f", *(value / length for value in values))


def _unpack(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // _FLOAT_BYTES}f", vector))
