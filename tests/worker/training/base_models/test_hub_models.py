"""A base model of the Hub is looked at before its weights are fetched."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.hub import FakeHub
from tests.tiny_model import NAME
from tests.worker.training.conftest import Child, MakeRequest
from worker.processes.reports import Outcome, TrainingRequest

MODEL = "owner/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield hub
    hub.stop()


@pytest.fixture
def files(models_folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (models_folder / NAME).iterdir()}


def weights_requested(hub: FakeHub) -> bool:
    return any("safetensors" in request and "resolve" in request for request in hub.requests)


def test_a_job_that_can_not_run_fails_before_the_weights_are_fetched(
    hub: FakeHub,
    files: dict[str, bytes],
    make_request: MakeRequest,
    start_child: Callable[[TrainingRequest], Child],
) -> None:
    settings = {
        **json.loads(files["config.json"]),
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }
    hub.add(MODEL, {**files, "config.json": json.dumps(settings).encode()})

    ended = start_child(make_request(base_model=MODEL)).read_to_end().ended

    assert ended.code == "model_unreadable"
    assert "quantized already (gptq)" in (ended.message or "")
    assert hub.requests
    assert not weights_requested(hub)


@pytest.mark.slow
def test_the_weights_are_fetched_of_the_revision_that_was_looked_at(
    hub: FakeHub,
    files: dict[str, bytes],
    make_request: MakeRequest,
    start_child: Callable[[TrainingRequest], Child],
) -> None:
    repository = hub.add(MODEL, files)
    request = make_request(base_model=MODEL, training={"max_steps": 1, "learning_rate": 1e-2})

    ended = start_child(request).read_to_end().ended

    assert ended.outcome is Outcome.FINISHED, ended
    fetched = [request for request in hub.requests if "model.safetensors" in request]
    assert all(repository.sha in request for request in fetched)
    assert weights_requested(hub)
