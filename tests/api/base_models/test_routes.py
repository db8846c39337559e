import json
from datetime import UTC, datetime

from fastapi.testclient import TestClient

from app.core.engine.messages import BaseModelRef, ServingPath
from app.core.engine.state import EngineState, LoadingBase, ServedBase, ServedPath, WaitingRequests
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from tests.fakes import FakeEngine


def add_model(settings: Settings, name: str, **more: str) -> None:
    folder = settings.models_folder / name
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, **more}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_model_in_the_folder_is_listed_with_its_limits(client: TestClient, settings: Settings) -> None:
    add_model(settings, "tiny")
    listed = client.get("/models").json()
    (model,) = listed["data"]
    assert model.pop("size_bytes") > 0
    assert model == {
        "name": "tiny",
        "source": "local",
        "architecture": "LlamaForCausalLM",
        "context_length": 2048,
        "loaded": False,
        "state": "on_disk",
        "used_at": None,
        "needed_by": {"jobs": [], "exports": [], "imports": [], "downloads": [], "adapters": 0},
        "serving": {"path": "paged", "reason": None, "tokens_per_second": None},
        "waiting": 0,
    }
    assert listed["next"] is None
    assert listed["any_hub_model"] is True


def test_an_allow_list_is_what_may_be_named(client: TestClient, settings: Settings) -> None:
    add_model(settings, "tiny")
    add_model(settings, "secret")
    settings.allowed_models = ["tiny", "owner/model"]
    listed = client.get("/models").json()
    assert [(model["name"], model["source"]) for model in listed["data"]] == [
        ("tiny", "local"),
        ("owner/model", "hub"),
    ]
    assert listed["any_hub_model"] is False


def test_each_base_model_says_on_which_path_it_is_served_and_how_fast(
    client: TestClient, settings: Settings, engine: FakeEngine, database: Database
) -> None:
    add_model(settings, "tiny")
    add_model(settings, "odd", model_type="nemotron")
    served = [
        ServedPath(base_model="tiny", path=ServingPath.GENERAL, tokens_per_second=20),
        ServedPath(base_model="tiny", path=ServingPath.PAGED, tokens_per_second=200),
        ServedPath(base_model="odd", path=ServingPath.GENERAL, reason="odd", tokens_per_second=9),
        ServedPath(base_model="owner/odd", path=ServingPath.GENERAL, reason="its own attention"),
    ]
    odd = BaseModelRef(name="owner/odd", quantization=QuantizationSpec())
    engine.register(database, EngineState(base_model=odd, served=served))
    assert {model["name"]: model["serving"] for model in client.get("/models").json()["data"]} == {
        "odd": {"path": "general", "reason": "attention of its own kind", "tokens_per_second": 9},
        "tiny": {"path": "paged", "reason": None, "tokens_per_second": 200},
        "owner/odd": {"path": "general", "reason": "its own attention", "tokens_per_second": None},
    }


def test_the_loaded_model_says_so(client: TestClient, engine: FakeEngine, database: Database) -> None:
    loaded = BaseModelRef(name="owner/model", quantization=QuantizationSpec())
    engine.register(database, EngineState(base_model=loaded))
    (model,) = client.get("/models").json()["data"]
    assert (model["name"], model["loaded"], model["state"]) == ("owner/model", True, "loaded")


def test_each_base_model_says_what_the_engines_do_with_it(
    client: TestClient, settings: Settings, engine: FakeEngine, database: Database
) -> None:
    settings.allowed_models = ["owner/asleep"]
    first, second, third = (
        BaseModelRef(name=name, quantization=QuantizationSpec())
        for name in ("owner/first", "owner/second", "owner/third")
    )
    state = EngineState(
        bases=[ServedBase(base_model=one, weight_bits=16) for one in (first, second)],
        loading=LoadingBase(base_model=third, since=datetime.now(UTC)),
        waiting=[WaitingRequests(base_model=third, count=3)],
    )
    engine.register(database, state)
    models = client.get("/models").json()["data"]
    assert [(model["name"], model["state"], model["waiting"]) for model in models] == [
        ("owner/asleep", "on_hub", 0),
        ("owner/first", "loaded", 0),
        ("owner/second", "loaded", 0),
        ("owner/third", "loading", 3),
    ]
