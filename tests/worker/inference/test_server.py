"""The engine as a process of its own, over real HTTP."""

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.core.chat.tools import FunctionTool
from app.core.engine.messages import (
    AdapterRef,
    BaseModelRef,
    ChatMessage,
    Failed,
    Finished,
    GenerateRequest,
    Reply,
    ServingPath,
    TokenDelta,
    ToolCallDelta,
    Tools,
    reply_adapter,
)
from app.core.engine.sampling import Sampling
from app.core.engine.state import EngineState
from app.core.specs.job import QuantizationSpec
from tests.worker.engine_process import engine_client, start_engine
from worker.models.files.description import load_tokenizer
from worker.processes.child_process import ChildProcess

BASE = BaseModelRef(name="tiny-llama", quantization=QuantizationSpec(load_in_4bit=False))
LONG = BaseModelRef(name="long-llama", quantization=BASE.quantization)
ENDLESS = Sampling(temperature=0, max_new_tokens=32768)


@dataclass
class RunningEngine:
    process: ChildProcess
    http: httpx.Client

    def ask(self, prompt: str = "How do I", **options: object) -> list[Reply]:
        return list(self.stream(prompt, **options))

    def stream(self, prompt: str = "How do I", **options: object) -> Iterator[Reply]:
        request = make_request(prompt, **options)
        with self.http.stream("POST", "/generate", content=request.model_dump_json()) as response:
            for line in response.iter_lines():
                yield reply_adapter.validate_json(line)

    def wait_until(self, *, running: int) -> None:
        """Poll until so many sequences run. The test's time-out ends it."""
        while self.http.get("/health").json()["running"] != running:
            pass

    def state(self) -> EngineState:
        return EngineState.model_validate(self.http.get("/state").json())


@pytest.fixture(scope="module")
def engine(models_folder: Path, adapters_folder: Path, tmp_path_factory) -> Iterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("engine")
    add_long_model(models_folder)
    process = start_engine(models_folder, adapters_folder, folder)
    with connect(process) as engine:
        yield engine
    process.kill()
    process.close()


def add_long_model(models_folder: Path, context_length: int = 40_000) -> None:
    """The tiny model with a context that takes minutes to fill."""
    folder = models_folder / LONG.name
    shutil.copytree(models_folder / BASE.name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context_length}))


@contextlib.contextmanager
def connect(process: ChildProcess) -> Iterator[RunningEngine]:
    with engine_client(process) as http:
        yield RunningEngine(process, http)


def make_request(
    prompt: str | None = "How do I",
    *,
    adapter: str | None = None,
    messages: list[ChatMessage] | None = None,
    base: BaseModelRef = BASE,
    sampling: Sampling | None = None,
    tools: Tools | None = None,
) -> GenerateRequest:
    return GenerateRequest(
        base_model=base,
        adapter=AdapterRef(id=adapter, artifact=adapter) if adapter else None,
        prompt=None if messages else prompt,
        messages=messages,
        sampling=sampling or Sampling(temperature=0, max_new_tokens=8),
        tools=tools,
    )


def text_of(replies: list[Reply]) -> str:
    return "".join(reply.text for reply in replies if isinstance(reply, TokenDelta))


def test_base_and_adapter_answer_differently(engine):
    plain, tuned = engine.ask(), engine.ask(adapter="everything")

    assert isinstance(plain[-1], Finished)
    assert isinstance(tuned[-1], Finished)
    assert text_of(plain) != text_of(tuned)
    assert engine.state().adapters == ["everything"]


def test_many_first_requests_to_a_cold_template_are_all_answered(
    engine: RunningEngine, models_folder: Path, adapters_folder: Path
) -> None:
    """None of them is refused because the others load the adapter and render with its template."""
    own = shutil.copytree(adapters_folder / "attention", adapters_folder / "cold")
    load_tokenizer(models_folder / BASE.name).save_pretrained(own)
    (own / "chat_template.jinja").write_text("Q: {{ messages[0]['content'] }} A:")

    def ask(number: int) -> list[Reply]:
        return engine.ask(messages=[ChatMessage(role="user", content=f"{number}?")], adapter="cold")

    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(ask, range(64)))

    assert [type(replies[-1]) for replies in answers] == [Finished] * 64


def test_metrics_need_the_token_and_count_what_was_made(engine):
    assert httpx.get(engine.http.base_url.join("/metrics")).status_code == 401

    def read() -> float:
        families = text_string_to_metric_families(engine.http.get("/metrics").text)
        (made,) = (one for one in families if one.name == "tunesmith_engine_generation_tokens")
        return made.samples[0].value

    before = read()
    finished = engine.ask()[-1]
    assert read() == before + finished.usage.completion_tokens


def test_messages_are_rendered_with_the_chat_template(engine):
    replies = engine.ask(messages=[ChatMessage(role="user", content="How do I cancel a job?")])

    finished = replies[-1]
    assert isinstance(finished, Finished)
    assert finished.usage.prompt_tokens > 10


@pytest.mark.parametrize("adapter", [None, "everything"])
@pytest.mark.parametrize("path", ServingPath)
def test_a_required_call_is_made_by_a_model_that_knows_none(engine, path, adapter):
    parameters = {"type": "object", "properties": {"to": {"enum": ["north", "south"]}}, "required": ["to"]}
    tools = Tools(functions=[FunctionTool(name="move", parameters=parameters)], choice="required")

    replies = engine.ask(
        messages=[ChatMessage(role="user", content="Go.")],
        base=LONG.model_copy(update={"path": path}),
        adapter=adapter,
        sampling=Sampling(seed=1, max_new_tokens=1000),
        tools=tools.model_copy(update={"parallel": False}),
    )

    calls = [reply for reply in replies if isinstance(reply, ToolCallDelta)]
    assert calls[0].name == "move"
    assert json.loads("".join(call.arguments for call in calls))["to"] in ("north", "south")
    assert text_of(replies) == ""
    assert isinstance(replies[-1], Finished)
    assert (replies[-1].finish_reason, replies[-1].timings.path) == ("tool_calls", path)


@pytest.mark.parametrize("path", ["/generate", "/pause", "/share", "/resume", "/state"])
@pytest.mark.parametrize("token", [None, "wrong", "sécret"])
def test_wrong_token_is_refused(engine, path, token):
    headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
    method = "GET" if path == "/state" else "POST"

    response = httpx.request(method, engine.http.base_url.join(path), headers=headers)

    assert response.status_code == 401


@pytest.mark.parametrize("body", [b"", b"garbage", b"{}", b'{"base_model": 3}', b"\xff\xfe"])
def test_garbage_is_refused(engine, body):
    response = engine.http.post("/generate", content=body)

    assert response.status_code == 422
    assert response.json()["kind"] == "invalid"


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"adapter": "nowhere"}, "not_found", "nowhere"),
        ({"base": BaseModelRef(name="nothing", quantization=BASE.quantization)}, "not_found", "nothing"),
        ({"prompt": "word " * 500}, "invalid", "tokens"),
    ],
)
def test_what_can_not_be_answered_says_why(engine, options, kind, word):
    failure = engine.ask(**options)[-1]

    assert isinstance(failure, Failed)
    assert failure.kind == kind
    assert word in failure.message


def test_client_that_goes_away_frees_its_row(engine):
    stream = engine.stream(base=LONG, sampling=ENDLESS)
    next(stream)
    engine.wait_until(running=1)
    stream.close()

    engine.wait_until(running=0)


def test_slow_reader_does_not_stall_the_others(engine):
    slow = engine.stream(base=LONG, sampling=ENDLESS)
    next(slow)

    assert isinstance(engine.ask(base=LONG)[-1], Finished)
    slow.close()
    engine.wait_until(running=0)


def test_clients_at_the_same_time_get_what_they_get_alone(engine):
    adapters = [None, "attention", "everything", "patterns"]
    alone = [text_of(engine.ask(adapter=adapter)) for adapter in adapters]
    together: dict[int, str] = {}

    def ask(index: int) -> None:
        together[index] = text_of(engine.ask(adapter=adapters[index % 4]))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [together[index] for index in range(12)] == alone * 3


def test_pause_frees_the_model_and_resume_serves_again(engine):
    engine.ask()
    paused = EngineState.model_validate(engine.http.post("/pause", json={"job_id": "job_7"}).json())
    refused = engine.ask()[-1]
    engine.http.post("/resume")

    assert (paused.base_model, paused.paused_by) == (None, "job_7")
    assert isinstance(refused, Failed)
    assert (refused.kind, refused.code) == ("unavailable", "gpu_taken")
    assert refused.retry_after_seconds
    assert isinstance(engine.ask()[-1], Finished)


def test_sharing_names_the_job_and_serving_goes_on(engine):
    shared = engine.http.post("/share", json={"job_id": "job_7", "reserved_bytes": 1}).json()
    answer = engine.ask()[-1]
    alone = engine.http.post("/resume").json()

    assert (shared["shares_with"], alone["shares_with"]) == ("job_7", None)
    assert isinstance(answer, Finished)


def test_answer_is_sent_as_it_is_made(engine):
    """The first line must come while the answer is still being made."""
    stream = engine.stream(base=LONG, sampling=ENDLESS)

    assert isinstance(next(stream), TokenDelta)
    assert engine.http.get("/health").json()["running"] == 1
    stream.close()
    engine.wait_until(running=0)


def test_stop_lets_an_answer_finish_and_ends_well(models_folder, adapters_folder, tmp_path):
    process = start_engine(models_folder, adapters_folder, tmp_path)
    with connect(process) as engine:
        # Without an end of its own, or it might be over before it is asked to stop.
        sampling = Sampling(temperature=1, max_new_tokens=200, logit_bias={2: -100})
        stream = engine.stream(sampling=sampling)
        replies = [next(stream)]
        process.ask_to_stop()
        replies += stream
        assert isinstance(replies[-1], Finished)

    assert process.wait(60) == 0, process.log_tail()
    process.close()


def test_engine_dies_with_its_parent(models_folder, adapters_folder, tmp_path):
    process = start_engine(models_folder, adapters_folder, tmp_path)
    with connect(process):
        process.close()

        assert process.wait(60) == 1


def test_replies_are_json_lines(engine):
    response = engine.http.post("/generate", content=make_request().model_dump_json())

    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["type"] for line in response.text.splitlines()][-1] == "finished"
