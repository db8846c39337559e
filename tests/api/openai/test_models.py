"""Base models and adapters as the official client lists, finds and deletes them."""

import json
from pathlib import Path

import openai
import pytest

from app.core.engine.messages import BaseModelRef
from app.core.engine.state import EngineState
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from tests.factories import make_adapter, make_job
from tests.fakes import FakeEngine

HI = [{"role": "user", "content": "Hi"}]


def add_local_model(settings: Settings, name: str) -> Path:
    folder = settings.models_folder / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def test_base_models_and_adapters_are_listed(openai_client: openai.OpenAI, settings: Settings) -> None:
    add_local_model(settings, "small")
    found = list(openai_client.models.list())
    assert [(model.id, model.object, model.owned_by) for model in found] == [
        ("small", "model", "local"),
        ("helper", "model", "tunesmith"),
    ]
    assert found[1].created > 1_700_000_000


def test_more_adapters_than_fit_a_page_are_listed(openai_client: openai.OpenAI, database: Database) -> None:
    with database.transaction() as session:
        for number in range(250):
            make_adapter(session, id=f"ad_{number:016}x", name=f"a{number}")
    assert len(list(openai_client.models.list())) == 251


@pytest.mark.parametrize("name", ["helper", "ad_0000000000000000"])
def test_an_adapter_is_found_by_name_and_by_id(openai_client: openai.OpenAI, name: str) -> None:
    assert openai_client.models.retrieve(name).id == "helper"


def test_a_name_with_slashes_is_one_name(
    openai_client: openai.OpenAI, engine: FakeEngine, database: Database
) -> None:
    loaded = BaseModelRef(name="owner/model", quantization=QuantizationSpec())
    engine.register(database, EngineState(base_model=loaded))
    assert openai_client.models.retrieve("owner/model").owned_by == "hub"
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.models.retrieve("owner/other/thing")
    assert caught.value.code == "model_not_found"


def test_a_deleted_adapter_is_gone(openai_client: openai.OpenAI) -> None:
    deleted = openai_client.models.delete("helper")
    assert (deleted.id, deleted.deleted, deleted.object) == ("helper", True, "model")
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("helper")
    with pytest.raises(openai.NotFoundError):
        openai_client.models.delete("helper")


def test_a_base_model_can_not_be_deleted(openai_client: openai.OpenAI, settings: Settings) -> None:
    folder = add_local_model(settings, "small")
    with pytest.raises(openai.BadRequestError):
        openai_client.models.delete("small")
    assert folder.exists()


def test_a_conflict_is_not_tried_again(
    openai_client: openai.OpenAI, database: Database, settings: Settings
) -> None:
    with database.transaction() as session:
        make_job(session, continue_from="ad_0000000000000000")
    with pytest.raises(openai.ConflictError) as caught:
        openai_client.models.delete("helper")
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_model_is_a_base_model_an_adapter_or_a_hub_id(
    openai_client: openai.OpenAI, engine: FakeEngine, settings: Settings
) -> None:
    add_local_model(settings, "small")
    for name in ("small", "helper", "ad_0000000000000000", "owner/thing"):
        openai_client.chat.completions.create(model=name, messages=HI)  # type: ignore[arg-type]
    assert [(asked.base_model.name, bool(asked.adapter)) for asked in engine.requests] == [
        ("small", False),
        ("owner/model", True),
        ("owner/model", True),
        ("owner/thing", False),
    ]


@pytest.mark.parametrize("name", ["../secrets", "a/b/c", "owner/../..", "/etc/passwd"])
def test_what_is_no_name_of_a_model_never_reaches_the_engine(
    openai_client: openai.OpenAI, engine: FakeEngine, name: str
) -> None:
    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(model=name, messages=HI)  # type: ignore[arg-type]
    assert engine.requests == []


def test_an_adapter_with_the_name_of_a_base_model_goes_by_its_id(
    openai_client: openai.OpenAI, settings: Settings
) -> None:
    add_local_model(settings, "helper")
    assert [model.id for model in openai_client.models.list()] == ["helper", "ad_0000000000000000"]
