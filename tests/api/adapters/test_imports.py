"""Imported adapters: what is accepted, how it is verified, and what a failure leaves behind."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.adapters.importer import Importer
from app.api.deps import Services
from app.core.adapters import imports as adapter_imports, records as adapter_records
from app.core.engine.client import EngineClient
from app.core.engine.messages import Failed, MadeToken, ServingPath, TokenDelta
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.main import create_app
from tests.adapter_archives import peft_files, zipped
from tests.factories import make_adapter, make_dataset
from tests.fakes import FINISHED, Act, FakeEngine
from tests.waiting import wait_for

UNSUPPORTED = Failed(kind="invalid", code="adapter_unsupported", message="It was trained with DoRA.")


def said(logprob: float) -> list[Any]:
    token = MadeToken(token_id=1, bytes=[65], logprob=logprob, top=[])
    return [TokenDelta(text="A", tokens=[token]), FINISHED]


@pytest.fixture(autouse=True)
def good_engine(engine: FakeEngine, database: Database) -> None:
    engine.register(database)
    engine.scripts = [said(-0.5), said(-0.7)]


def send(client: TestClient, files: dict[str, bytes] | None = None, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key} if (key := fields.pop("key", None)) else {}
    upload = {"file": ("my adapter.zip", zipped(files or peft_files()))}
    return client.post("/adapters", files=upload, data=fields, headers=headers)


def wait_for_verification(client: TestClient, adapter_id: str) -> dict[str, Any]:
    """The adapter once it is verified, or has failed."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/adapters/{adapter_id}").json()
        return found if found["state"] != "importing" else None

    return wait_for(look, "the import")


def add_unverified(database: Database, settings: Settings) -> str:
    """An import whose files are stored, without an API that verifies it."""
    adapter_id, artifact = adapter_imports.name_artifact()
    for name, content in peft_files().items():
        path = settings.data_dir / "made" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    ArtifactStore(settings.artifacts_url).put_folder(artifact, settings.data_dir / "made")
    with database.transaction() as session:
        adapter_imports.submit(
            session,
            adapter_id,
            name="helper",
            base_model="owner/model",
            quantization=QuantizationSpec(),
            lora=None,
            chat_template=None,
            artifact=artifact,
            size_bytes=1,
            max_waiting=9,
        )
    return adapter_id


def verify(database: Database, settings: Settings, adapter_id: str) -> None:
    async def once() -> None:
        engines = EngineClient()
        store = ArtifactStore(settings.artifacts_url)
        await Importer(database, settings, store, engines).verify(adapter_id)
        await engines.close()

    asyncio.run(once())


def stored_files(settings: Settings) -> list[str]:
    return ArtifactStore(settings.artifacts_url).list_files("adapters")


def test_an_imported_adapter_is_verified_and_then_like_any_other(
    client: TestClient, engine: FakeEngine
) -> None:
    sent = send(client)
    assert (sent.status_code, sent.json()["state"]) == (202, "importing")
    assert sent.headers["location"] == f"/adapters/{sent.json()['id']}"
    found = wait_for_verification(client, sent.json()["id"])

    assert (found["state"], found["name"], found["base_model"]) == ("ready", "my-adapter", "owner/model")
    assert (found["job"], found["error"], found["quantization"]["load_in_4bit"]) == (None, None, False)
    assert found["serving"]["path"] == "paged"
    assert [one["id"] for one in client.get("/adapters").json()["data"]] == [found["id"]]
    assert found["name"] in [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert client.get(f"/adapters/{found['id']}/download").status_code == 200
    adapted, plain = engine.requests
    assert adapted.adapter
    assert adapted.adapter.id == found["id"]
    assert (adapted.base_model, plain.adapter) == (plain.base_model, None)
    assert not adapted.base_model.quantization.load_in_4bit


def test_an_adapter_on_the_general_path_is_compared_on_that_path_and_says_so(
    client: TestClient, engine: FakeEngine
) -> None:
    timings = {"path": ServingPath.GENERAL, "path_reason": "lora.use_dora"}
    slow = FINISHED.model_copy(update={"timings": FINISHED.timings.model_copy(update=timings)})
    engine.scripts = [[*said(-0.5)[:-1], slow], [*said(-0.7)[:-1], slow]]
    found = wait_for_verification(client, send(client).json()["id"])

    assert found["state"] == "ready"
    assert found["serving"] == {"path": "general", "reason": "lora.use_dora", "tokens_per_second": None}
    assert [request.base_model.path for request in engine.requests] == ["paged", "general"]


def test_base_model_quantization_and_template_may_be_given(client: TestClient, engine: FakeEngine) -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    fields = {"name": "mine", "base_model": "other/base", "quantization": '{"load_in_4bit": true}'}
    found = wait_for_verification(client, send(client, **fields, chat_template=template).json()["id"])
    assert (found["name"], found["base_model"]) == ("mine", "other/base")
    assert engine.requests[0].base_model.quantization.load_in_4bit


def test_an_adapter_that_changes_nothing_fails_and_its_files_go(
    client: TestClient, engine: FakeEngine, settings: Settings
) -> None:
    engine.scripts = [said(-0.5), said(-0.5)]
    found = wait_for_verification(client, send(client).json()["id"])
    assert (found["state"], found["error"]["code"]) == ("failed", "adapter_inert")
    assert stored_files(settings) == []


def test_an_adapter_that_the_engine_refuses_fails_with_the_reason_and_can_be_deleted(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.scripts = [[UNSUPPORTED]]
    found = wait_for_verification(client, send(client).json()["id"])
    assert found["error"]["message"] == "It was trained with DoRA."
    (listed,) = client.get("/adapters", params={"state": "failed"}).json()["data"]
    assert listed["id"] == found["id"]
    assert client.get("/adapters").json()["data"] == []
    assert client.delete(f"/adapters/{found['id']}").status_code == 204
    assert client.get(f"/adapters/{found['id']}").status_code == 404


def test_a_failed_import_leaves_its_name_to_the_next(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts = [[UNSUPPORTED], said(-0.5), said(-0.7)]
    wait_for_verification(client, send(client).json()["id"])
    found = wait_for_verification(client, send(client).json()["id"])
    assert (found["state"], found["name"]) == ("ready", "my-adapter")
    assert client.get("/adapters/my-adapter").json()["id"] == found["id"]


def test_an_adapter_being_imported_can_be_shown_and_deleted_but_not_used(
    client: TestClient, engine: FakeEngine, settings: Settings
) -> None:
    engine.scripts = [[Act.HOLD]]
    sent = send(client, name="slow").json()
    assert engine.is_holding.wait(20)
    asked = client.post("/generate", json={"adapter": "slow", "prompt": "Hi"})
    assert (asked.status_code, asked.json()["error"]["code"]) == (409, "adapter_not_ready")
    (listed,) = client.get("/adapters", params={"state": "importing"}).json()["data"]
    assert listed == client.get("/adapters/slow").json()
    assert client.delete("/adapters/slow").status_code == 204
    assert stored_files(settings) == []
    assert client.get(f"/adapters/{sent['id']}").status_code == 404


def test_an_adapter_deleted_during_its_verification_does_not_come_back(
    database: Database, settings: Settings
) -> None:
    adapter_id = add_unverified(database, settings)
    with database.transaction() as session:
        adapter_imports.delete(session, adapter_id)
    verify(database, settings, adapter_id)
    with database.transaction() as session:
        assert adapter_imports.finish(session, adapter_id, general_path=[]) is None
        assert adapter_records.find_page(session, after=None, limit=9) == ([], None)


def test_an_import_waits_for_an_engine_and_shows_that(
    database: Database, settings: Settings, engine: FakeEngine
) -> None:
    engine.scripts = [[Failed(kind="unavailable", code="gpu_taken", message="A job has the GPU.")]]
    adapter_id = add_unverified(database, settings)
    verify(database, settings, adapter_id)
    with database.snapshot() as session:
        row = adapter_records.find_import(session, adapter_id)
        assert row is not None
        assert (row.state, row.error and row.error["code"]) == ("importing", "gpu_taken")


def test_an_adapter_at_which_the_engine_breaks_again_and_again_fails(
    database: Database, settings: Settings, engine: FakeEngine
) -> None:
    engine.scripts = [[Act.BREAK]] * 2
    adapter_id = add_unverified(database, settings)
    states = []
    for _ in range(2):
        verify(database, settings, adapter_id)
        with database.snapshot() as session:
            row = adapter_records.find_import(session, adapter_id)
            assert row is not None
            states.append((row.state, row.error and row.error["message"]))
    assert states == [
        ("importing", "The engine stopped while it was answering."),
        ("failed", "The engine failed or froze while it tried the adapter, 2 times."),
    ]


def test_an_import_left_unverified_by_a_killed_api_is_verified_at_the_next_start(
    settings: Settings, database: Database
) -> None:
    adapter_id = add_unverified(database, settings)
    with TestClient(create_app(settings)) as client:
        assert wait_for_verification(client, adapter_id)["state"] == "ready"


def test_the_same_request_makes_one_adapter(client: TestClient, settings: Settings) -> None:
    sent = [send(client, key="once").json()["id"] for _ in range(2)]
    wait_for_verification(client, sent[0])
    assert sent[0] == sent[1]
    assert {path.split("/")[0] for path in stored_files(settings)} == {sent[0]}


def test_a_name_that_is_taken_is_refused_and_nothing_is_stored(
    client: TestClient, services: Services, settings: Settings
) -> None:
    with services.database.transaction() as session:
        make_adapter(session)
    refused = send(client, name="helper")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_name_taken")
    assert stored_files(settings) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"base_model": "../base"}, "base_model"),
        ({"base_model": "not-here"}, "base_model"),
        ({"quantization": "4bit"}, "quantization"),
        ({"quantization": '{"bits": 4}'}, "quantization"),
        ({"chat_template": "{{ messages"}, "chat_template"),
        ({"chat_template": "{{ messages }}{{ " + "1" * 5000 + " }}"}, "chat_template"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_bad_fields_are_named(
    client: TestClient, settings: Settings, fields: dict[str, str], param: str
) -> None:
    refused = send(client, **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)
    assert stored_files(settings) == []


def test_a_chat_template_that_is_no_text_is_refused(client: TestClient, settings: Settings) -> None:
    refused = send(client, peft_files(**{"chat_template.jinja": b"\xff\xfe{{"}))
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "adapter_invalid")
    assert "chat_template.jinja is not UTF-8" in refused.json()["error"]["message"]
    assert stored_files(settings) == []


def test_an_adapter_without_a_base_model_needs_it_given(client: TestClient) -> None:
    files = peft_files({"base_model_name_or_path": "/root/models/llama"})
    refused = send(client, files).json()["error"]
    assert refused["param"] == "base_model"
    assert "Send `base_model`" in refused["hint"]
    assert (
        wait_for_verification(client, send(client, files, base_model="owner/model").json()["id"])["state"]
        == "ready"
    )


def test_a_job_continues_from_an_imported_adapter_with_its_settings(
    client: TestClient, services: Services, tmp_path: Path
) -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    found = wait_for_verification(client, send(client, chat_template=template).json()["id"])
    with services.database.transaction() as session:
        dataset = make_dataset(session, services.store, tmp_path).id
    body = {"base_model": "owner/model", "dataset": dataset, "continue_from": found["name"]}
    spec = client.post("/jobs", json=body).json()["spec"]
    assert (spec["continue_from"], spec["chat_template"]) == (found["id"], template)
    assert (spec["lora"]["r"], spec["lora"]["target_modules"]) == (2, ["q_proj", "v_proj"])
    assert spec["quantization"]["load_in_4bit"] is False
