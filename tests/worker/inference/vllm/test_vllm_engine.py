"""The engine whose tokens an external vLLM makes, as a process of its own, over real HTTP."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from app.core.engine.messages import (
    AdapterRef,
    Failed,
    Finished,
    GenerateRequest,
    OutputSchema,
    Reply,
    TokenDelta,
    reply_adapter,
)
from app.core.engine.sampling import Sampling
from tests.waiting import wait_for
from tests.worker.engine_process import engine_client, start_engine
from tests.worker.inference.test_server import BASE, LONG, RunningEngine, add_long_model
from tests.worker.inference.vllm.stand_in import VllmStandIn
from worker.processes.reports import VllmTarget

ADAPTER = "everything"
ANSWER = "a git commit of all"


@pytest.fixture(scope="module")
def tokens(models_folder: Path) -> list[int]:
    """The ids of an answer, and of the end."""
    tokenizer = AutoTokenizer.from_pretrained(models_folder / BASE.name)
    ids = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the worker and vLLM share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def served(models_folder: Path) -> Iterator[VllmStandIn]:
    stand_in = VllmStandIn(BASE.name, root=f"/models/{BASE.name}")
    yield stand_in
    stand_in.stop()


@pytest.fixture(scope="module")
def running(
    models_folder: Path,
    adapters_folder: Path,
    served: VllmStandIn,
    shared: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningEngine]:
    add_long_model(models_folder)
    target = VllmTarget(url=f"{served.url}/v1", api_key="key", adapters_folder=shared)
    process = start_engine(models_folder, adapters_folder, tmp_path_factory.mktemp("engine"), vllm=target)
    with engine_client(process) as http:
        yield RunningEngine(process, http)
    process.ask_to_stop()
    process.wait(20)
    process.close()


@pytest.fixture
def engine(running: RunningEngine, served: VllmStandIn, tokens: list[int]) -> RunningEngine:
    served.requests.clear()
    served.loads.clear()
    served.answers = {BASE.name: tokens, ADAPTER: tokens}
    served.holds = False
    return running


def ask(engine: RunningEngine, **options: object) -> list[Reply]:
    request = GenerateRequest.model_validate(ASK.model_dump() | options)
    answer = engine.http.post("/generate", content=request.model_dump_json())
    return [reply_adapter.validate_json(line) for line in answer.text.splitlines()]


def text_of(replies: list[Reply]) -> str:
    return "".join(reply.text for reply in replies if isinstance(reply, TokenDelta))


ASK = GenerateRequest(base_model=BASE, prompt="How do I", sampling=Sampling(temperature=0))
PLAIN = AdapterRef(id=ADAPTER, artifact=ADAPTER)


def test_a_base_model_s_answer_is_vllm_s_tokens_as_text(engine: RunningEngine, served: VllmStandIn) -> None:
    replies = ask(engine, sampling=Sampling(temperature=0, seed=5, logit_bias={3: 1.0}))
    assert text_of(replies) == ANSWER
    end = replies[-1]
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.completion_tokens) == ("stop", len(served.answers[BASE.name]))
    [body] = served.requests
    assert body["model"] == BASE.name
    assert all(isinstance(token, int) for token in body["prompt"])
    assert (body["temperature"], body["seed"], body["logit_bias"]) == (0.0, 5, {"3": 1.0})
    assert served.answers[BASE.name][-1] in body["stop_token_ids"]


def test_an_adapter_is_loaded_once_from_the_shared_folder_and_again_after_a_restart_of_vllm(
    engine: RunningEngine, served: VllmStandIn, shared: Path
) -> None:
    for _ in range(2):
        assert text_of(ask(engine, adapter=PLAIN)) == ANSWER
    assert served.loads == [ADAPTER]
    assert served.adapters == {ADAPTER: str(shared / ADAPTER)}
    served.restart()
    assert text_of(ask(engine, adapter=PLAIN)) == ANSWER
    assert served.loads == [ADAPTER, ADAPTER]
    assert {body["model"] for body in served.requests} == {ADAPTER}


def test_a_deleted_adapter_is_unloaded_and_its_copy_removed(
    engine: RunningEngine, served: VllmStandIn, shared: Path
) -> None:
    ask(engine, adapter=PLAIN)
    assert engine.state().adapters == [ADAPTER]
    answer = engine.http.post("/adapters/unload", json={"adapter_ids": [ADAPTER, "unknown"]})
    assert answer.status_code == 200
    assert served.adapters == {}
    assert engine.state().adapters == []
    assert not (shared / ADAPTER).exists()


def test_adapters_that_vllm_was_started_with_are_not_among_those_that_may_be_unloaded(
    engine: RunningEngine, served: VllmStandIn, shared: Path
) -> None:
    served.restart()
    served.adapters["mine"] = str(shared / ADAPTER)
    ask(engine, base_model=LONG)  # looks at what vLLM serves
    ask(engine, adapter=PLAIN)
    assert engine.state().adapters == [ADAPTER]


def test_stop_strings_and_lengths_end_an_answer(engine: RunningEngine, served: VllmStandIn) -> None:
    stopped = ask(engine, sampling=Sampling(temperature=0, stop=["commit"]))
    assert text_of(stopped) == ANSWER.partition("commit")[0]
    cut = ask(engine, sampling=Sampling(temperature=0, max_new_tokens=2))
    assert isinstance(cut[-1], Finished)
    assert cut[-1].finish_reason == "length"
    assert served.requests[-1]["max_tokens"] == 2


def test_log_probabilities_are_vllm_s(engine: RunningEngine, tokens: list[int]) -> None:
    replies = ask(engine, sampling=Sampling(temperature=0, logprobs=2))
    made = [token for reply in replies if isinstance(reply, TokenDelta) for token in reply.tokens or []]
    assert [token.token_id for token in made] == tokens[:-1]
    assert [(one.token_id, one.logprob) for one in made[0].top] == [(tokens[0], -0.5), (tokens[0] + 1, -1.5)]


def test_a_schema_goes_to_vllm(engine: RunningEngine, served: VllmStandIn) -> None:
    ask(engine, output_schema=OutputSchema(source='{"type": "object"}', strict=True))
    assert served.requests[0]["structured_outputs"] == {"json": {"type": "object"}}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"embeds": True}, "invalid_request"),
        ({"base_model": LONG}, "model_unknown"),
        ({"adapter": AdapterRef(id="gone", artifact="gone")}, "not_found"),
        ({"prompt": "How do I " * 100}, "context_length_exceeded"),
    ],
    ids=["embedding", "another base", "no files", "too long"],
)
def test_what_vllm_can_not_serve_is_refused_by_name(
    engine: RunningEngine, options: dict[str, object], code: str
) -> None:
    [failed] = ask(engine, **options)
    assert isinstance(failed, Failed)
    assert failed.code == code


def test_vllm_s_own_refusal_of_an_adapter_is_shown(
    engine: RunningEngine, adapters_folder: Path, served: VllmStandIn
) -> None:
    shutil.copytree(adapters_folder / ADAPTER, adapters_folder / "broken")
    (adapters_folder / "broken" / "adapter_config.json").unlink()
    [failed] = ask(engine, adapter=AdapterRef(id="broken", artifact="broken"))
    assert isinstance(failed, Failed)
    assert "No adapter found" in failed.message


def test_a_client_that_goes_away_ends_the_work_at_vllm(engine: RunningEngine, served: VllmStandIn) -> None:
    served.holds = True
    replies = engine.stream()
    next(replies)
    replies.close()
    wait_for(served.disconnected.is_set, "the end of the request")


def test_the_state_names_what_vllm_serves_and_a_vllm_that_is_away_is_a_problem(
    engine: RunningEngine, served: VllmStandIn
) -> None:
    assert BASE.name in {base.base_model.name for base in engine.state().bases}
    assert engine.state().is_external
    served.stop()
    wait_for(lambda: engine.http.get("/health").json()["problem"], "the problem")
    [failed] = ask(engine)
    assert isinstance(failed, Failed)
    assert failed.code == "vllm_unreachable"
