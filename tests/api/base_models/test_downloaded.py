"""Downloaded base models: listed, deleted by hand and by age, and refused while something needs them."""

import pytest
from fastapi.testclient import TestClient

from app.api.base_models import removal
from app.api.deps import Services
from app.core.engine.messages import BaseModelRef
from app.core.engine.state import ServedBase
from app.core.jobs import records as job_records
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from tests.api.base_models.conftest import CacheEngine
from tests.factories import make_adapter, make_job

NAME = "owner/model"


def names(client: TestClient) -> list[str]:
    return [model["name"] for model in client.get("/models").json()["data"]]


def test_a_downloaded_model_is_listed_and_deleted(
    client: TestClient, box: CacheEngine, database: Database
) -> None:
    box.add(NAME)
    with database.transaction() as session:
        make_adapter(session, base_model=NAME)
    (model,) = client.get("/models").json()["data"]
    assert (model["source"], model["state"], model["architecture"]) == ("hub", "on_disk", "LlamaForCausalLM")
    assert model["size_bytes"] > 1000
    assert model["used_at"]
    assert model["needed_by"]["adapters"] == 1
    answer = client.delete(f"/models/{NAME}")
    assert answer.json() == {"name": NAME, "size_bytes": model["size_bytes"], "adapters": 1}
    assert names(client) == []
    assert list(box.cache.iterdir()) == []


def test_what_an_unfinished_job_needs_is_not_deleted(
    client: TestClient, box: CacheEngine, database: Database
) -> None:
    box.add(NAME)
    with database.transaction() as session:
        job_id = make_job(session, base_model=NAME).id
    error = client.delete(f"/models/{NAME}")
    assert (error.status_code, error.json()["error"]["code"]) == (409, "model_in_use")
    assert job_id in error.json()["error"]["message"]
    assert client.get("/models").json()["data"][0]["needed_by"]["jobs"] == [job_id]
    assert client.delete("/storage/base_models").json()["deleted"] == 0
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)
    assert client.delete(f"/models/{NAME}").status_code == 200


@pytest.mark.parametrize("knows_api", [True, False])
def test_what_the_engine_holds_is_not_deleted(client: TestClient, box: CacheEngine, knows_api: bool) -> None:
    box.add(NAME)
    held = BaseModelRef(name=NAME, quantization=QuantizationSpec())
    box.state = box.state.model_copy(update={"bases": [ServedBase(base_model=held, weight_bits=4)]})
    if knows_api:  # else the engine loaded it after the worker's last heartbeat
        box.beat()
    error = client.delete(f"/models/{NAME}")
    assert (error.status_code, error.json()["error"]["code"]) == (409, "model_in_use")
    assert "holds" in error.json()["error"]["message"]
    assert names(client) == [NAME]


def test_a_model_that_a_person_put_there_stays(
    client: TestClient, box: CacheEngine, settings: Settings
) -> None:
    folder = settings.models_folder / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert client.delete("/models/mine").json()["error"]["code"] == "model_in_folder"
    assert client.delete("/models/owner/nowhere").json()["error"]["code"] == "model_not_downloaded"
    assert folder.is_dir()


def test_storage_shows_and_deletes_what_nothing_needs(client: TestClient, box: CacheEngine) -> None:
    box.add("owner/old", days_old=40)
    box.add("owner/new")
    kind = client.get("/storage").json()["data"][-1]
    assert (kind["kind"], kind["count"], kind["deletable_count"]) == ("base_models", 2, 2)
    assert kind["size_bytes"] == kind["deletable_bytes"] > 2000
    answer = client.delete("/storage/base_models?older_than_days=30").json()
    assert (answer["deleted"], answer["size_bytes"] > 1000) == (1, True)
    assert names(client) == ["owner/new"]


def test_models_age_out_only_where_the_settings_say_so(
    client: TestClient, box: CacheEngine, services: Services
) -> None:
    box.add("owner/old", days_old=40)
    assert client.portal is not None
    assert client.portal.call(removal.remove_aged, services) == 0
    services.settings.keep_base_models_days = 30
    assert client.portal.call(removal.remove_aged, services) == 1
    assert names(client) == []


def test_without_an_engine_nothing_is_deleted(client: TestClient, box: CacheEngine) -> None:
    box.add(NAME)
    box.stop()
    assert client.delete(f"/models/{NAME}").status_code == 503
    assert names(client) == [NAME]
