"""The real stack while its engine is killed in mid answer, and while two base models are requested."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.box import Box, running_box
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_for
from worker.processes.engine_process import ENGINE_MODULE

QUESTION = {"prompt": "How do I", "temperature": 0}


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """The tiny model, and the same with a context that takes minutes to fill."""
    folder = tmp_path / "models"
    tiny = make_tiny_model(folder)
    endless = folder / "endless-llama"
    shutil.copytree(tiny, endless)
    config = json.loads((endless / "config.json").read_text())
    (endless / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40_000}))
    return folder


@contextmanager
def endless_stream(box: Box) -> Iterator[Iterator[str]]:
    """The names of the events of an answer that does not end by itself."""
    body = {**QUESTION, "base_model": "endless-llama", "max_new_tokens": 32768, "stream": True}
    with box.client.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        yield (line.removeprefix("event: ") for line in lines if line.startswith("event: "))


def test_an_engine_killed_in_mid_answer_says_so_and_its_successor_answers_the_same(tmp_path, models_dir):
    with running_box(tmp_path, models_dir) as box:
        worker = box.start_worker()
        before = box.answer("Say 3", base_model="endless-llama")
        with endless_stream(box) as events:
            assert next(events) == "delta"
            engine = box.child(worker, ENGINE_MODULE)
            assert engine is not None
            engine.kill()
            *deltas, last = events
        meanwhile = box.client.post("/generate", json={**QUESTION, "base_model": "endless-llama"})

        assert set(deltas) <= {"delta"}
        assert last == "error"
        assert (meanwhile.status_code, "retry-after" in meanwhile.headers) == (503, True)
        wait_for(lambda: box.client.get("/ready").status_code == 200, "the new engine")
        assert box.answer("Say 3", base_model="endless-llama") == before


@pytest.mark.slow
def test_two_base_models_answer_side_by_side_where_two_are_allowed(tmp_path, models_dir):
    with running_box(tmp_path, models_dir, engine_max_base_models="2") as box:
        box.start_worker()
        with endless_stream(box) as events:
            assert next(events) == "delta"
            assert box.answer("Say 3", base_model="tiny-llama") is not None
            assert next(events) == "delta"
            wait_for(lambda: set(states(box).values()) == {"loaded"}, "both to be shown as loaded")


@pytest.mark.slow
def test_a_base_model_that_finds_no_place_is_refused_in_time_and_nothing_hangs(tmp_path, models_dir):
    with running_box(tmp_path, models_dir, engine_switch_wait_seconds="1") as box:
        box.start_worker()
        with endless_stream(box) as events:
            assert next(events) == "delta"
            refused = box.client.post("/generate", json={**QUESTION, "base_model": "tiny-llama"})
            assert next(events) == "delta"

        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "base_model_busy")
        assert refused.headers["retry-after"]
        assert "endless-llama" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_a_client_that_waits_for_a_base_model_is_seen_and_served_when_the_other_has_drained(
    tmp_path, models_dir
):
    with running_box(tmp_path, models_dir) as box:
        box.start_worker()
        body = {**QUESTION, "base_model": "tiny-llama", "max_new_tokens": 3, "stream": True}
        with endless_stream(box) as events:
            assert next(events) == "delta"
            waiting = box.client.build_request("POST", "/generate", json=body)
            response = box.client.send(waiting, stream=True)
            # The stream opens before its base model is loaded.
            assert response.status_code == 200
            reasons = box.client.get("/ready").json()["reasons"]
        text = response.read().decode()
        response.close()

        assert reasons == [
            "The base model tiny-llama is not loaded, and the engine is busy with endless-llama. "
            "Waiting for it: 1."
        ]
        assert "event: done" in text
        done = json.loads(text.rsplit("data: ", 1)[1])
        assert done["timings"]["queued_seconds"] > 5


def states(box: Box) -> dict[str, str]:
    return {model["name"]: model["state"] for model in box.client.get("/models").json()["data"]}
