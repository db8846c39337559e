"""Chat completions and responses with the official client: streams, schemas, functions, full contexts."""

import asyncio
import json
import threading
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.end_to_end.openai.calls import HI, MODEL, chat, complete
from tests.waiting import wait_for
from tests.worker.inference.test_server import LONG, RunningEngine


class City(pydantic.BaseModel):
    """The schema of a structured answer."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=6)
    size: int = pydantic.Field(ge=0, le=99)


def test_a_stream_says_what_the_answer_says(client: openai.OpenAI) -> None:
    whole = chat(client, model="everything")
    *chunks, last = chat(client, model="everything", stream=True, stream_options={"include_usage": True})

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        whole.choices[0].message.content
    )
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage == whole.usage


def test_the_async_client_streams_from_adapters_at_the_same_time(url: str, client: openai.OpenAI) -> None:
    names = [MODEL, "attention", "everything"] * 3
    alone = [chat(client, model=name).choices[0].message.content for name in names]

    async def ask(client: openai.AsyncOpenAI, name: str) -> str:
        stream: Any = await client.chat.completions.create(
            model=name, messages=HI, temperature=0, max_completion_tokens=12, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            return await asyncio.gather(*(ask(client, name) for name in names))

    assert asyncio.run(ask_all()) == alone


def test_n_answers_differ_and_come_again_with_their_seed(client: openai.OpenAI) -> None:
    first, again = (chat(client, n=4, temperature=1, seed=7) for _ in range(2))

    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 4
    assert texts == [choice.message.content for choice in again.choices]
    assert first.usage.prompt_tokens == chat(client).usage.prompt_tokens
    assert first.usage.completion_tokens <= 4 * 12


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_that_is_asked_for_a_schema_keeps_to_it(client: openai.OpenAI, seed: int) -> None:
    completion = client.chat.completions.parse(
        model=(MODEL, "everything")[seed % 2],
        messages=HI,
        response_format=City,
        temperature=1,
        seed=seed,
        max_completion_tokens=200,
    )

    assert completion.choices[0].finish_reason == "stop"
    assert isinstance(completion.choices[0].message.parsed, City)


def test_schemas_hold_in_company_and_leave_the_others_alone(client: openai.OpenAI) -> None:
    free = complete(client, model="attention").choices[0].text
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    named = {"name": "it", "schema": schema | {"additionalProperties": False}, "strict": True}
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        if number % 2:
            found[number] = complete(client, model="attention").choices[0].text
        else:
            form = {"type": "json_schema", "json_schema": named}
            answer = chat(client, response_format=form, max_completion_tokens=200, temperature=1, seed=number)
            found[number] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [found[number] for number in (1, 3, 5, 7)] == [free] * 4
    assert all(json.loads(found[number])["a"] in (1, 2) for number in (0, 2, 4, 6))


def test_a_bad_schema_is_named(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, response_format=form)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_that_does_not_fit_says_so(client: openai.OpenAI, streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "word " * 500}], stream=streamed)
    assert caught.value.code == "context_length_exceeded"
    # The words by which LiteLLM and others tell it from other errors.
    assert "This model's maximum context length is 256 tokens. However, " in str(caught.value)


def test_an_answer_without_a_limit_ends_where_the_context_does(client: openai.OpenAI) -> None:
    choice = chat(client, max_completion_tokens=None, logit_bias={"2": -100})
    assert choice.choices[0].finish_reason == "length"
    assert choice.usage.total_tokens == 256


def test_a_stored_conversation_is_that_of_chat_until_the_context_is_full(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "max_output_tokens": 8, "temperature": 0}
    response = client.responses.create(input="How do I cancel a job?", **options)
    turns = [*HI, {"role": "assistant", "content": response.output_text}, {"role": "user", "content": "So?"}]
    second = client.responses.create(input="So?", previous_response_id=response.id, **options)
    chat = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=8, temperature=0)
    assert second.output_text == chat.choices[0].message.content
    assert second.usage is not None
    assert chat.usage is not None
    assert second.usage.input_tokens == chat.usage.prompt_tokens

    def go_on(previous: str, rounds: int = 40) -> str:
        for _ in range(rounds):
            previous = client.responses.create(input="So?", previous_response_id=previous, **options).id
        return previous

    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        go_on(second.id)


def test_a_response_calls_the_function_that_is_required(client: openai.OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["id"],
        "additionalProperties": False,
    }
    tool: Any = {"type": "function", "name": "show_job", "parameters": parameters, "strict": True}
    options: Any = {"model": LONG.name, "tools": [tool], "temperature": 0}
    with client.responses.stream(input="Job 7?", tool_choice="required", **options) as stream:
        first = stream.get_final_response()
    call = first.output[-1]
    assert call.type == "function_call"
    assert json.loads(call.arguments)["id"] in range(10)
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    options |= {"max_output_tokens": 4, "previous_response_id": first.id}
    second = client.responses.create(input=[output], **options)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]

    assert set(names) >= {MODEL, "attention", "everything"}
    assert [client.models.retrieve(name).id for name in names] == names
    with pytest.raises(openai.NotFoundError):
        chat(client, model="owner/nothing/at/all")


def test_a_client_that_leaves_in_mid_stream_frees_its_slot(
    client: openai.OpenAI, engine: RunningEngine
) -> None:
    endless = {"model": "long-llama", "max_completion_tokens": 30_000, "logit_bias": {"2": -100}}
    with chat(client, stream=True, n=2, **endless) as stream:
        next(iter(stream))
        wait_for(lambda: engine.http.get("/health").json()["running"] == 2, "both answers to run")

    wait_for(lambda: engine.http.get("/health").json()["running"] == 0, "the slots to be free")


def test_the_older_way_answers_too(url: str) -> None:
    """`/generate` on the same adapters: `n`, tokens with log-probabilities, a schema."""
    body = {"adapter": "everything", "messages": HI, "n": 2, "logprobs": 1, "seed": 3, "max_new_tokens": 60}
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"enum": ["a", "b"]}}}
    answer = httpx.post(
        url.replace("/v1", "/generate"), json=body | {"response_format": form}, timeout=60
    ).json()

    assert [json.loads(choice["text"]) in ("a", "b") for choice in answer["choices"]] == [True, True]
    assert answer["tokens"][0]["top"][0]["logprob"] <= 0
