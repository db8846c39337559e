"""Embeddings as the official client reads them; the engine behind the API is scripted."""

import base64
import json
import socket
import struct
from typing import Any

import httpx
import openai
import pytest

from app.core.engine.messages import Failed
from tests.fakes import FINISHED, Act, FakeEngine


def pack(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


@pytest.fixture(autouse=True)
def script(engine: FakeEngine) -> None:
    engine.script = [FINISHED.model_copy(update={"embedding": pack(0.5, 0.5, 0.5, 0.5)})]


def embed(client: openai.OpenAI, **options: Any) -> Any:
    return client.embeddings.create(**{"model": "helper", "input": "Hi", **options})


@pytest.mark.parametrize(
    ("texts", "asked"),
    [
        ("x", [("x", None)]),
        (["x", "y"], [("x", None), ("y", None)]),
        ([5, 6], [(None, [5, 6])]),
        ([[5], [6, 7]], [(None, [5]), (None, [6, 7])]),
    ],
)
def test_an_input_is_text_or_tokens_one_or_many(
    openai_client: openai.OpenAI, engine: FakeEngine, texts: Any, asked: list[Any]
) -> None:
    found = embed(openai_client, input=texts)
    sent = [(one.prompt, one.prompt_ids) for one in engine.requests]
    assert sorted(sent, key=str) == sorted(asked, key=str)
    assert all(one.embeds for one in engine.requests)
    assert [(one.index, one.object) for one in found.data] == [(i, "embedding") for i in range(len(asked))]
    assert (found.object, found.model) == ("list", "helper")
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (3 * len(asked), 3 * len(asked))


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_both_formats_are_the_same_numbers(openai_client: openai.OpenAI, form: str | None) -> None:
    # Without a format the client asks for base64 and decodes it.
    options = {} if form is None else {"encoding_format": form}
    (found,) = embed(openai_client, **options).data
    assert found.embedding == (pack(0.5, 0.5, 0.5, 0.5) if form == "base64" else [0.5] * 4)


def test_fewer_dimensions_are_of_length_1_again(openai_client: openai.OpenAI) -> None:
    (found,) = embed(openai_client, dimensions=2).data
    assert found.embedding == pytest.approx([0.5**0.5] * 2)
    with pytest.raises(openai.BadRequestError) as caught:
        embed(openai_client, dimensions=5)
    assert caught.value.param == "dimensions"
    assert "4 numbers" in str(caught.value)


def test_many_texts_are_all_embedded_in_their_order(openai_client: openai.OpenAI) -> None:
    assert [one.index for one in embed(openai_client, input=["x"] * 40).data] == list(range(40))


def test_a_client_that_goes_away_ends_the_few_that_are_with_the_engine(
    live: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = [Act.HOLD]
    body = json.dumps({"model": "helper", "input": ["x"] * 40}).encode()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((live.base_url.host, live.base_url.port or 0)) as connection:
        connection.sendall(head.encode() + body)
        for _ in range(16):
            assert engine.holding.acquire(timeout=20)
    for _ in range(16):
        assert engine.lost.acquire(timeout=20)
    assert len(engine.requests) == 16


def test_a_refusal_of_the_engine_names_the_input(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [
        Failed(kind="invalid", code="context_length_exceeded", message="Too long.", param="prompt")
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        embed(openai_client)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x", ""]}, "input.1"),
        ({"input": [1, -1]}, "input.1"),
        ({"input": ["x"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"model": "nobody"}, "model"),
        ({"dimension": 3}, "dimension"),
    ],
)
def test_what_is_wrong_is_named(live: httpx.Client, options: dict[str, Any], param: str) -> None:
    answer = live.post("/v1/embeddings", json={"model": "helper", "input": "x", **options})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_a_long_list_of_tokens_is_read(live: httpx.Client) -> None:
    answer = live.post("/v1/embeddings", json={"model": "helper", "input": [1] * 50_000})
    assert answer.status_code == 200
