"""Chat completions as the official client reads them."""

import json
import socket
from typing import Any

import httpx
import openai
import pytest

from app.api.generate import answer_events, answers
from app.core.engine.messages import MadeToken, TokenDelta, TokenProbability
from tests.fakes import FINISHED, Act, FakeEngine

HI: list[Any] = [{"role": "user", "content": "Hi"}]
HALF = MadeToken(
    token_id=7,
    bytes=[0xC3],
    logprob=-0.5,
    top=[TokenProbability(token_id=7, bytes=[0xC3], logprob=-0.5)],
)
OTHER_HALF = MadeToken(token_id=8, bytes=[0xA9], logprob=-1.5, top=[])
PLAIN = MadeToken(token_id=9, bytes=[0x61], logprob=-2.5, top=[])


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "helper", "messages": HI, **options})


def test_a_response_has_every_field_of_openai_s(openai_client: openai.OpenAI) -> None:
    completion = ask(openai_client)
    (choice,) = completion.choices
    assert completion.id.startswith("chatcmpl")
    assert (completion.object, completion.model) == ("chat.completion", "helper")
    assert completion.created > 1_700_000_000
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello")
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 2, 5)


def test_parameters_reach_the_engine(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    ask(
        openai_client,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=-2,
        stop="END",
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=3,
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    (asked,) = engine.requests
    assert asked.sampling.model_dump() == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {5: -100},
        "logprobs": 3,
        "seed": 2**63 - 2,
        "stop": ["END"],
    }


def test_defaults_are_openai_s(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    ask(openai_client, temperature=None, stop=None, n=None, seed=None, top_logprobs=0)
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1, 1, 32768)
    assert (sampling.stop, sampling.logprobs) == ([], None)


def test_no_probability_at_all_leaves_the_likeliest_token(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    ask(openai_client, top_p=0)
    assert engine.requests[0].sampling.top_k == 1


def test_a_seed_of_minus_one_draws_one(live: httpx.Client, engine: FakeEngine) -> None:
    live.post("/v1/chat/completions", json={"model": "helper", "messages": HI, "seed": -1})
    live.post("/v1/completions", json={"model": "helper", "prompt": "Hi", "seed": -1})
    live.post("/generate", json={"adapter": "helper", "prompt": "Hi", "seed": -1})
    assert [asked.sampling.seed for asked in engine.requests] == [None] * 3


EDGES: list[tuple[str, list[Any], list[Any]]] = [
    ("top_k", [-1, 0, 2**63 - 1], [-2, 2**63, 10**400, 1e300]),
    ("seed", [-(2**63), 2**63 - 1], [2**63, 10**400]),
    ("temperature", [0, 1e-45, 1.2e-38, 2], [-1e-45, 2.1, 10**400]),
    ("top_p", [0, 5e-324, 1], [1.1]),
    ("min_p", [0, 5e-324, 1], [-1, 1.1]),
    ("repetition_penalty", [0.01, 10], [0, 1e-30, 1e-9, 11, 10**400]),
    ("presence_penalty", [-2, 2], [-3, 1e300]),
    ("frequency_penalty", [-2, 2], [-3, 1e300]),
    ("logit_bias", [{str(10**30): 100}], [{"-1": 1}, {"1": 101}, {"1": 1e300}]),
    ("n", [1, 128], [0, 129, 2**63, 10**400]),
    ("max_tokens", [1, 32768], [0, 32769, 2**63, 10**400]),
    ("max_completion_tokens", [1, 32768], [0, 2**63]),
    ("stop", ["x" * 10_000, ["x"] * 16], ["", "x" * 10_001, ["x"] * 17]),
]


@pytest.mark.parametrize(("name", "allowed", "refused"), EDGES, ids=[name for name, *_ in EDGES])
def test_every_number_has_bounds_and_works_at_them(
    live: httpx.Client, engine: FakeEngine, name: str, allowed: list[Any], refused: list[Any]
) -> None:
    def status(value: object) -> int:
        body = {"model": "helper", "messages": HI, name: value}
        return live.post("/v1/chat/completions", json=body).status_code

    assert [status(value) for value in allowed] == [200] * len(allowed)
    assert [status(value) for value in refused] == [400] * len(refused)


def test_top_logprobs_has_bounds(live: httpx.Client, engine: FakeEngine) -> None:
    body = {"model": "helper", "messages": HI, "logprobs": True}
    answers = [
        live.post("/v1/chat/completions", json=body | {"top_logprobs": count}) for count in (0, 20, 21, 2**63)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 400]


def test_what_changes_nothing_is_accepted(openai_client: openai.OpenAI) -> None:
    neutral = {
        "n": 1,
        "tools": [],
        "tool_choice": "auto",
        "modalities": ["text"],
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "logprobs": False,
        "response_format": {"type": "text"},
        "reasoning_effort": None,
    }
    assert ask(openai_client, **neutral).choices[0].message.content == "Hello"


def test_messages_come_as_text_or_as_parts_and_an_answer_may_be_sent_back(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    answer = ask(openai_client).choices[0].message
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "so?"}]
    first: list[Any] = [{"role": "developer", "content": "Be brief."}]
    ask(openai_client, messages=[*first, *HI, answer, {"role": "user", "content": parts, "name": "Ann"}])
    turns = engine.requests[1].messages or []
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "How so?"),
    ]


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(openai_client: openai.OpenAI) -> None:
    chunks = list(ask(openai_client, stream=True))
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "chat.completion.chunk")
    }
    first, *texts, last = (chunk.choices[0] for chunk in chunks)
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert "".join(one.delta.content for one in texts) == "Hello"
    assert {(one.delta.role, one.finish_reason) for one in texts} == {(None, None)}
    assert (last.delta.content, last.finish_reason) == (None, "stop")
    assert not any(chunk.usage for chunk in chunks)


def test_a_stream_says_the_usage_at_its_end_when_asked(openai_client: openai.OpenAI) -> None:
    *chunks, last = ask(openai_client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.total_tokens == 5
    assert all(chunk.usage is None for chunk in chunks)


def test_logprobs_keep_the_halves_of_a_character_apart(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="é", tokens=[HALF, OTHER_HALF]), FINISHED]
    content = ask(openai_client, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert [(one.token, one.bytes, one.logprob) for one in content] == [
        ("\\xc3", [0xC3], -0.5),
        ("\\xa9", [0xA9], -1.5),
    ]
    assert content[0].top_logprobs[0].bytes == [0xC3]


def test_logprobs_are_streamed_with_their_text(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [
        TokenDelta(text="é", tokens=[HALF, OTHER_HALF]),
        TokenDelta(text="a", tokens=[PLAIN]),
        FINISHED,
    ]
    _role, *deltas, end = (chunk.choices[0] for chunk in ask(openai_client, stream=True, logprobs=True))
    found = [(one.delta.content, len(one.logprobs.content)) for one in deltas]
    assert found in ([("é", 2), ("a", 1)], [("éa", 3)])
    assert end.logprobs is None


def test_n_answers_have_seeds_of_their_own_and_one_usage(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    completion = ask(openai_client, n=3, seed=5)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 6)
    first_seeds = {asked.sampling.seed for asked in engine.requests}
    assert len(first_seeds) == 3
    assert 5 in first_seeds

    ask(openai_client, n=3, seed=5)
    assert {asked.sampling.seed for asked in engine.requests} == first_seeds


def test_n_streams_come_in_one_each_with_its_index(openai_client: openai.OpenAI) -> None:
    texts: dict[int, str] = {}
    for chunk in ask(openai_client, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == {0: "Hello", 1: "Hello", 2: "Hello"}


def test_a_schema_reaches_the_engine(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"name": "it", "schema": schema, "strict": True}
    ask(openai_client, response_format={"type": "json_schema", "json_schema": named})
    ask(openai_client, response_format={"type": "json_object"})
    strict, any_object = (asked.output_schema for asked in engine.requests)
    assert strict is not None
    assert any_object is not None
    assert (json.loads(strict.source), strict.strict) == (schema, True)
    assert json.loads(any_object.source) == {"type": "object"}


def test_a_client_that_leaves_in_mid_stream_ends_the_work(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    with ask(openai_client, stream=True) as stream:
        next(iter(stream))
        assert engine.is_holding.wait(10)
    assert engine.lost_its_client.wait(10)


def test_a_silent_stream_sends_keep_alives(
    live: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_FIRST_REPLY_SECONDS", 0)
    monkeypatch.setattr(answer_events, "KEEP_ALIVE_SECONDS", 0.01)
    engine.script = [Act.HOLD]
    body = {"model": "helper", "messages": HI, "stream": True}
    with live.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        assert next(answer.iter_lines()) == ": keep-alive"
        assert engine.is_holding.wait(10)
    assert engine.lost_its_client.wait(10)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_ends_the_work_on_all_its_answers(
    live: httpx.Client, engine: FakeEngine, streamed: bool
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    body = json.dumps({"model": "helper", "messages": HI, "n": 3, "stream": streamed}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((live.base_url.host, live.base_url.port or 0)) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert all(engine.holding.acquire(timeout=10) for _ in range(3))
    assert all(engine.lost.acquire(timeout=10) for _ in range(3))
