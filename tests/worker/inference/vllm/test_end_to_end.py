"""A whole Tunesmith in front of an external vLLM: an adapter is imported, served, and deleted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.adapter_archives import zipped_folder
from tests.end_to_end.box import Box, running_box
from tests.tiny_model import NAME, make_tiny_model
from tests.waiting import wait_for
from tests.worker.inference.conftest import ADAPTERS, save_adapter
from tests.worker.inference.vllm.stand_in import VllmStandIn

pytestmark = pytest.mark.slow

ANSWER = "a git commit of all"


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[VllmStandIn]:
    stand_in = VllmStandIn(NAME)
    stand_in.max_model_len = 256
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path / "models"))
    stand_in.answers[NAME] = [*tokenizer.encode(ANSWER, add_special_tokens=False), tokenizer.eos_token_id]
    yield stand_in
    stand_in.stop()


@pytest.fixture
def box(tmp_path: Path, vllm: VllmStandIn) -> Iterator[Box]:
    models = tmp_path / "models"
    with running_box(tmp_path, models, engine="vllm", vllm_url=vllm.url, lease_seconds="3") as box:
        yield box


def test_an_imported_adapter_is_served_by_vllm_until_it_is_deleted(
    box: Box, vllm: VllmStandIn, tmp_path: Path
) -> None:
    box.start_worker()
    folder = save_adapter(tmp_path / "models" / NAME, tmp_path / "one", **ADAPTERS["everything"])
    found = box.import_adapter(zipped_folder(folder))
    assert found["state"] == "ready", found
    assert set(vllm.adapters) == {found["id"]}
    assert Path(vllm.adapters[found["id"]]).is_relative_to(tmp_path / "data" / "artifacts")
    assert box.answer("Say 3", adapter=found["id"]) == ANSWER
    assert vllm.requests[-1]["model"] == found["id"]

    assert box.client.delete(f"/adapters/{found['id']}").is_success
    wait_for(lambda: not vllm.adapters, "the adapter to be unloaded")
    assert box.client.get("/ready").status_code == 200
