"""Search on the Hub, over its real client and a fake Hub's HTTP."""

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from app.core.base_models.messages import HubModel, HubSearchRequest
from tests.servers.hub import FakeHub
from tests.servers.models import add_model
from worker.base_models.hub_search import search


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield hub
    hub.stop()


def test_models_that_may_be_trained_are_found_with_what_their_pages_say(hub: FakeHub) -> None:
    add_model(hub, "owner/llama-7b")
    add_model(hub, "owner/llama-gated", is_gated=True, about={"downloads": 5000, "safetensors": None})
    add_model(hub, "owner/llama-embeddings", about={"pipeline_tag": "feature-extraction"})
    add_model(hub, "owner/llama-gguf", about={"tags": ["gguf"]})
    add_model(hub, "owner/qwen")
    found = search(HubSearchRequest(query="LLAMA", limit=5))
    assert (found.state, found.message) == ("ok", None)
    assert found.data == [
        HubModel(name="owner/llama-gated", license="apache-2.0", is_gated=True, downloads=5000),
        HubModel(
            name="owner/llama-7b",
            parameters=7_000_000_000,
            size_bytes=14_000_000_000,
            license="apache-2.0",
            downloads=1000,
        ),
    ]


@pytest.mark.parametrize(("status", "state"), [(503, "unreachable"), (401, "refused")])
def test_a_hub_that_does_not_answer_is_a_state(hub: FakeHub, status: int, state: str) -> None:
    hub.broken_status = status
    found = search(HubSearchRequest(query="a", limit=5))
    assert found.state == state
    assert str(status) in (found.message or "")
    assert "secret" not in (found.message or "")


def test_no_network_and_no_wish_to_ask_are_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert search(HubSearchRequest(query="a", limit=5)).state == "unreachable"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert search(HubSearchRequest(query="a", limit=5)).state == "offline"
