"""The official OpenAI client, unmodified, against a running API and a running engine with a real model."""

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.settings import Settings
from app.core.storage.database import Database, migrate
from app.main import create_app
from tests.factories import make_adapter
from tests.fakes import ServerThread
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_for
from tests.worker.engine_process import start_engine
from tests.worker.inference.conftest import ADAPTERS, peft_warnings_ignored, save_adapter
from tests.worker.inference.test_server import LONG, RunningEngine, add_long_model, connect

MODEL = "tiny-llama"
HI: list[Any] = [{"role": "user", "content": "How do I cancel a job?"}]
QUANTIZATION = {"load_in_4bit": False}


class City(pydantic.BaseModel):
    """The schema of a structured answer."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=6)
    size: int = pydantic.Field(ge=0, le=99)


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder)
    add_long_model(folder)
    return folder


@pytest.fixture(scope="module")
def engine(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """An engine process with the adapters `attention` and `everything`."""
    folder = tmp_path_factory.mktemp("engine")
    for seed, name in enumerate(("attention", "everything")):
        save_adapter(models_folder / MODEL, folder / "artifacts" / name, seed=seed, **ADAPTERS[name])
    process = start_engine(models_folder, folder / "artifacts", folder)
    with connect(process) as engine:
        yield engine
    process.kill()
    process.close()


@pytest.fixture(scope="module")
def url(
    models_folder: Path, engine: RunningEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The API on a real socket, with the engine in its table of workers."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"), models_dir=models_folder, lease_seconds=3600
    )
    migrate(settings.database_url)
    database = Database(settings.database_url)
    with database.transaction() as session:
        for number, name in enumerate(("attention", "everything")):
            make_adapter(
                session,
                id=f"ad_{number:016}",
                name=name,
                artifact=name,
                base_model=MODEL,
                quantization=QUANTIZATION,
            )
        address = str(engine.http.base_url).rstrip("/")
        workers.heartbeat(
            session, WorkerReport("worker-1", ["serve"], engine_url=address, engine_token="secret")
        )
    server = ServerThread(create_app(settings))
    yield f"{server.url}/v1"
    server.stop()
    database.close()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": MODEL, "messages": HI, "temperature": 0, "max_completion_tokens": 12, **options}
    )


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(
        **{"model": MODEL, "prompt": "How do I", "temperature": 0, "max_tokens": 12, **options}
    )


def test_base_model_and_adapters_answer_differently(client: openai.OpenAI) -> None:
    answers = {name: complete(client, model=name) for name in (MODEL, "attention", "ad_0000000000000001")}

    assert len({answer.choices[0].text for answer in answers.values()}) == 3
    assert {answer.usage.prompt_tokens for answer in answers.values()} == {answers[MODEL].usage.prompt_tokens}


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


def test_logprobs_are_of_the_tokens_that_make_the_text(client: openai.OpenAI) -> None:
    choice = chat(client, logprobs=True, top_logprobs=5).choices[0]

    content = choice.logprobs.content
    text = b"".join(bytes(one.bytes) for one in content).decode(errors="replace")
    assert text.rstrip("\N{REPLACEMENT CHARACTER}") == choice.message.content
    for one in content:
        probabilities = [math.exp(other.logprob) for other in one.top_logprobs]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1
        # Greedy: the token itself is the likeliest.
        assert (one.top_logprobs[0].bytes, one.top_logprobs[0].logprob) == (one.bytes, one.logprob)


def test_logprobs_of_a_stream_are_those_of_the_answer(client: openai.OpenAI) -> None:
    whole = complete(client, logprobs=2).choices[0].logprobs
    streamed = [chunk.choices[0].logprobs for chunk in complete(client, logprobs=2, stream=True)]

    chunks = [logprobs for logprobs in streamed if logprobs]
    assert [token for one in chunks for token in one.tokens] == whole.tokens
    assert [offset for one in chunks for offset in one.text_offset] == whole.text_offset


def test_n_answers_differ_and_come_again_with_their_seed(client: openai.OpenAI) -> None:
    first, again = (chat(client, n=4, temperature=1, seed=7) for _ in range(2))

    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 4
    assert texts == [choice.message.content for choice in again.choices]
    assert first.usage.prompt_tokens == chat(client).usage.prompt_tokens
    assert first.usage.completion_tokens <= 4 * 12


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    text = complete(client).choices[0].text
    stop = text[len(text) // 2 :][:2]

    choice = complete(client, stop=[stop]).choices[0]

    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


def test_bias_and_penalties_change_what_is_said(client: openai.OpenAI) -> None:
    biased = complete(client, logit_bias={"40": 100}, logprobs=0).choices[0]
    assert len(set(biased.logprobs.tokens)) == 1

    plain, penalized = (
        chat(client, logprobs=True, **penalties).choices[0].logprobs.content
        for penalties in ({}, {"frequency_penalty": 2, "presence_penalty": 2})
    )
    assert len({tuple(one.bytes) for one in penalized}) > len({tuple(one.bytes) for one in plain})


def test_prompts_may_be_many_and_may_be_tokens(client: openai.OpenAI) -> None:
    texts = ["How do I", "Send POST", "read its events"]
    alone = [complete(client, prompt=text).choices[0].text for text in texts]

    together = complete(client, prompt=texts)
    as_tokens = complete(client, prompt=[[40, 41, 42], [43]])

    assert [choice.text for choice in together.choices] == alone
    assert as_tokens.usage.prompt_tokens == 4


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


@pytest.mark.parametrize("name", [MODEL, "everything"])
def test_embeddings_are_those_of_transformers(
    client: openai.OpenAI, models_folder: Path, tmp_path: Path, name: str
) -> None:
    folder = models_folder / MODEL
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["How do I cancel a job?", "Send POST to the jobs endpoint, then read its events. " * 5]
    extra = {"quantization": QUANTIZATION} if name == MODEL else {}
    found = client.embeddings.create(model=name, input=texts, extra_body=extra)
    assert found.usage.prompt_tokens == sum(len(tokenizer(text).input_ids) for text in texts)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if name != MODEL:
        with peft_warnings_ignored():
            seed = ["attention", "everything"].index(name)
            saved = save_adapter(folder, tmp_path / name, seed=seed, **ADAPTERS[name])
            model = PeftModel.from_pretrained(model, saved)
    for text, one in zip(texts, found.data, strict=True):
        with torch.no_grad():
            outputs = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        mean = outputs.hidden_states[-1][0].mean(0)
        torch.testing.assert_close(torch.tensor(one.embedding), mean / mean.norm(), atol=2e-5, rtol=0)


def test_a_text_that_is_too_long_to_embed_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=["Hi", "word " * 500])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
