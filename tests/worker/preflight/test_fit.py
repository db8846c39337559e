"""Whether a job of the default settings fits, without weights and rows."""

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from app.core.base_models.messages import FitRequest
from app.core.engine.preflight import PreflightRequest
from app.core.errors.base_models import HubUnreachable, ModelUnreadable
from tests.servers.hub import FakeHub
from tests.servers.models import add_model
from tests.tiny_model import NAME
from tests.worker.preflight.conftest import GPU, Ask, chat
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.fit import estimate_fit
from worker.preflight.report import run_preflight

# Llama-2-7b's.
SEVEN_BILLION = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    files = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + files)
    yield hub
    hub.stop()


def test_a_model_of_the_hub_is_measured_by_its_config_alone(
    hub: FakeHub, environment: PreflightEnvironment
) -> None:
    add_model(hub, "owner/seven", config=SEVEN_BILLION)
    at = {gb: environment.model_copy(update={"device": _gpu(gb)}) for gb in (24, 4)}
    large, small = (estimate_fit(FitRequest(base_model="owner/seven"), at[gb]) for gb in (24, 4))
    assert (large.fits, small.fits) == (True, False)
    assert large.parameters == 6_738_415_616
    assert (large.batch_size, large.row_tokens, large.is_gpu) == (4, 1024, True)
    # In 4 bits the weights are 3.8 GB.
    assert 4e9 < small.needed_bytes < large.needed_bytes < 0.9 * large.memory_bytes
    assert not any("safetensors" in request for request in hub.requests)


def test_it_is_what_a_preflight_says_of_such_a_job(environment: PreflightEnvironment, ask: Ask) -> None:
    environment = environment.model_copy(update={"device": GPU, "free_bytes": GPU.memory_bytes})
    fit = estimate_fit(FitRequest(base_model=NAME), environment)
    request: PreflightRequest = ask([chat("word " * 5000)] * 8, lora={})
    job = run_preflight(request, environment)
    assert job.tokens.max == fit.row_tokens
    assert fit.needed_bytes == pytest.approx(job.memory.total, rel=0.02)


def test_what_can_not_be_trained_says_why(hub: FakeHub, environment: PreflightEnvironment) -> None:
    add_model(hub, "owner/bert", config={"model_type": "vit", "architectures": ["ViTModel"]})
    with pytest.raises(ModelUnreadable):
        estimate_fit(FitRequest(base_model="owner/bert"), environment)
    hub.broken_status = 503
    with pytest.raises(HubUnreachable):
        estimate_fit(FitRequest(base_model="owner/other"), environment)


def _gpu(gigabytes: int) -> object:
    return GPU.model_copy(update={"memory_bytes": gigabytes * 10**9})
