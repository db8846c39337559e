"""Text completions as the official client reads them."""

from typing import Any

import openai
import pytest

from app.core.engine.messages import MadeToken, PromptDelta, TokenDelta, TokenProbability, TokenText
from tests.fakes import FINISHED, FakeEngine


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "helper", "prompt": "x", **options})


def made(text: bytes, logprob: float) -> MadeToken:
    top = [TokenProbability(token_id=0, bytes=list(text), logprob=logprob)]
    return MadeToken(token_id=0, bytes=list(text), logprob=logprob, top=top)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("x", [("x", None)]),
        (["x", "y"], [("x", None), ("y", None)]),
        ([5, 6], [(None, [5, 6])]),
        ([[5], [6, 7]], [(None, [5]), (None, [6, 7])]),
    ],
)
def test_a_prompt_is_text_or_tokens_one_or_many(
    openai_client: openai.OpenAI, engine: FakeEngine, prompt: Any, asked: list[Any]
) -> None:
    completion = ask(openai_client, prompt=prompt)
    found = [(request.prompt, request.prompt_ids) for request in engine.requests]
    assert sorted(found, key=str) == sorted(asked, key=str)
    assert [(choice.index, choice.text) for choice in completion.choices] == [
        (index, "Hello") for index in range(len(asked))
    ]
    assert completion.object == "text_completion"


def test_answers_to_each_prompt_follow_each_other_and_each_prompt_counts_once(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    completion = ask(openai_client, prompt=["x", "y"], n=2, best_of=2)
    assert len(completion.choices) == 4
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (6, 8)


def test_defaults_are_openai_s(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    ask(openai_client, echo=False, suffix=None, best_of=1)
    sampling = engine.requests[0].sampling
    assert (sampling.max_new_tokens, sampling.temperature) == (16, 1)


def test_a_stream_is_of_completions(openai_client: openai.OpenAI) -> None:
    *chunks, usage = ask(openai_client, stream=True, stream_options={"include_usage": True})
    *texts, end = (chunk.choices[0] for chunk in chunks)
    assert "".join(one.text for one in texts) == "Hello"
    assert {one.finish_reason for one in texts} == {None}
    assert (end.text, end.finish_reason) == ("", "stop")
    assert usage.usage.completion_tokens == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs_have_the_older_format_with_offsets(
    openai_client: openai.OpenAI, engine: FakeEngine, streamed: bool
) -> None:
    engine.script = [
        TokenDelta(text="aé", tokens=[made(b"a", -1), made(b"\xc3", -2), made(b"\xa9", -3)]),
        TokenDelta(text="b", tokens=[made(b"b", -4)]),
        FINISHED,
    ]
    answer = ask(openai_client, logprobs=1, stream=streamed)
    found = [chunk.choices[0].logprobs for chunk in (answer if streamed else [answer])]
    given = [logprobs for logprobs in found if logprobs]
    assert [token for one in given for token in one.tokens] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b"]
    assert [value for one in given for value in one.token_logprobs] == [-1, -2, -3, -4]
    assert [offset for one in given for offset in one.text_offset] == [0, 1, 1, 2]
    assert [top for one in given for top in one.top_logprobs][1] == {"bytes:\\xc3": -2}


def test_top_logprobs_hold_the_sampled_token(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    likelier = TokenProbability(token_id=2, bytes=list(b"x"), logprob=-0.5)
    sampled = MadeToken(token_id=1, bytes=list(b"a"), logprob=-3, top=[likelier])
    engine.script = [TokenDelta(text="a", tokens=[sampled]), FINISHED]
    logprobs = ask(openai_client, logprobs=1).choices[0].logprobs
    assert logprobs.top_logprobs == [{"x": -0.5, "a": -3}]


PROMPT = PromptDelta(
    first=TokenText(token_id=1, bytes=list(b"<s>")), tokens=[made(b"I", -1), made(b" am", -2)]
)


@pytest.mark.parametrize("streamed", [False, True])
def test_echo_puts_the_prompt_and_its_logprobs_in_front(
    openai_client: openai.OpenAI, engine: FakeEngine, streamed: bool
) -> None:
    engine.script = [PROMPT, TokenDelta(text=" x", tokens=[made(b" x", -4)]), FINISHED]
    answer = ask(openai_client, prompt="I am", echo=True, logprobs=1, stream=streamed)
    choices = [chunk.choices[0] for chunk in (answer if streamed else [answer])]
    given = [choice.logprobs for choice in choices if choice.logprobs]
    assert "".join(choice.text for choice in choices) == "I am x"
    assert [token for one in given for token in one.tokens] == ["<s>", "I", " am", " x"]
    assert [value for one in given for value in one.token_logprobs] == [None, -1, -2, -4]
    assert [top for one in given for top in one.top_logprobs] == [None, {"I": -1}, {" am": -2}, {" x": -4}]
    assert [offset for one in given for offset in one.text_offset] == [0, 0, 1, 4]
    assert engine.requests[0].prompt_logprobs == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_echo_of_tokens_is_their_text(
    openai_client: openai.OpenAI, engine: FakeEngine, streamed: bool
) -> None:
    engine.script = [PROMPT, TokenDelta(text="!"), FINISHED]
    answer = ask(openai_client, prompt=[1, 2, 3], echo=True, stream=streamed)
    choices = [chunk.choices[0] for chunk in (answer if streamed else [answer])]
    assert "".join(choice.text for choice in choices) == "<s>I am!"
    assert not any(choice.logprobs for choice in choices)
    assert engine.requests[0].prompt_logprobs == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_echo_of_texts_without_logprobs_needs_no_scores(
    openai_client: openai.OpenAI, engine: FakeEngine, streamed: bool
) -> None:
    answer = ask(openai_client, prompt=["x", "y"], n=2, echo=True, stream=streamed)
    texts = dict.fromkeys(range(4), "")
    for chunk in answer if streamed else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == ["xHello", "xHello", "yHello", "yHello"]
    assert {request.prompt_logprobs for request in engine.requests} == {None}


def test_no_tokens_are_made_where_none_are_wanted(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [PROMPT, FINISHED.model_copy(update={"finish_reason": "length"})]
    (choice,) = ask(openai_client, prompt="I am", max_tokens=0, echo=True, logprobs=0).choices
    assert (choice.text, choice.finish_reason) == ("I am", "length")
    assert choice.logprobs.token_logprobs == [None, -1, -2]
    assert engine.requests[0].reads_only
