"""What serves a request that names an alias, and what the answer says of it."""

import base64
import json
import struct
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.core.engine.messages import Finished, Timings, Usage
from app.core.settings import Settings
from app.core.storage.database import Database
from tests.api.openai.test_models import add_local_model
from tests.core.evaluations.evaluations import GRADER, ROWS
from tests.factories import make_adapter, make_dataset
from tests.fakes import FakeEngine

HI = [{"role": "user", "content": "Hi"}]
PEOPLE = [f"person-{number}" for number in range(24)]
SERVED = "x-tunesmith-model"
FORMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/generate": {"prompt": "Hi"},
}


@pytest.fixture(autouse=True)
def alias(client: TestClient, database: Database, engine: FakeEngine) -> None:
    """The alias `support`, which points to the adapter v1; there is v2, too."""
    engine.register(database)
    with database.transaction() as session:
        for name in ("v1", "v2"):
            make_adapter(session, id=f"ad_{name}", name=name)
    point(client, {"v1": 1.0})


def point(client: TestClient, shares: dict[str, float]) -> None:
    assert client.put("/aliases/support", json={"shares": shares}).status_code in (200, 201)


def chat(client: TestClient, **fields: Any) -> str:
    answer = client.post("/v1/chat/completions", json={"model": "support", "messages": HI, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers[SERVED] == answer.json()["model"]
    return str(answer.json()["model"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", FORMS)
def test_the_answer_says_which_model_served(
    client: TestClient, engine: FakeEngine, path: str, stream: bool
) -> None:
    answer = client.post(path, json={"model": "support", **FORMS[path], "stream": stream})
    assert answer.headers[SERVED] == "v1"
    assert [asked.adapter.id for asked in engine.requests if asked.adapter] == ["ad_v1"]
    if path != "/generate" and stream:
        assert '"model":"v1"' in answer.text
    elif path != "/generate":
        assert answer.json()["model"] == "v1"


def test_embeddings_say_it_too(client: TestClient, engine: FakeEngine) -> None:
    vector = base64.b64encode(struct.pack("<2f", 1.0, 0.0)).decode()
    usage, timings = (
        Usage(prompt_tokens=1, completion_tokens=0),
        Timings(queued_seconds=0, first_token_seconds=0, total_seconds=0, tokens_per_second=0),
    )
    engine.script = [Finished(finish_reason="stop", usage=usage, timings=timings, embedding=vector)]
    answer = client.post("/v1/embeddings", json={"model": "support", "input": "Hi"})
    assert (answer.headers[SERVED], answer.json()["model"]) == ("v1", "v1")


@pytest.mark.parametrize("name", ["v1", "ad_v1"])
def test_whoever_names_an_adapter_reads_that_name(client: TestClient, name: str) -> None:
    answer = client.post("/v1/chat/completions", json={"model": name, "messages": HI})
    assert (answer.json()["model"], answer.headers[SERVED]) == (name, "v1")


@pytest.mark.parametrize("field", ["user", "safety_identifier", "prompt_cache_key"])
def test_a_person_is_always_served_by_the_same_model(client: TestClient, field: str) -> None:
    point(client, {"v1": 0.5, "v2": 0.5})
    first = {person: chat(client, **{field: person}) for person in PEOPLE}
    assert set(first.values()) == {"v1", "v2"}
    assert {person: chat(client, **{field: person}) for person in PEOPLE} == first


def test_the_other_ways_to_ask_assign_a_person_alike(client: TestClient) -> None:
    point(client, {"v1": 0.5, "v2": 0.5})
    for person in PEOPLE[:8]:
        served = {
            client.post(path, json={"model": "support", "user": person, **form}).headers[SERVED]
            for path, form in FORMS.items()
        }
        assert served == {chat(client, user=person)}


def test_requests_without_a_person_go_to_each_model(client: TestClient) -> None:
    point(client, {"v1": 0.5, "v2": 0.5})
    assert {chat(client) for _ in range(40)} == {"v1", "v2"}


def test_a_conversation_stays_with_its_model(client: TestClient) -> None:
    point(client, {"v1": 0.5, "v2": 0.5})
    for person in PEOPLE:
        body: dict[str, Any] = {"model": "support", "input": "Hi"}
        first = client.post("/v1/responses", json=body).json()
        # Without its conversation this request would be assigned by its user.
        body |= {"previous_response_id": first["id"], "user": person}
        second = client.post("/v1/responses", json=body).json()
        third = client.post("/v1/responses", json=body | {"previous_response_id": second["id"]}).json()
        assert first["model"] == second["model"] == third["model"]


def test_a_conversation_leaves_a_model_that_the_alias_has_left(client: TestClient) -> None:
    first = client.post("/v1/responses", json={"model": "support", "input": "Hi"}).json()
    point(client, {"v2": 1.0})
    body = {"model": "support", "input": "Hi", "previous_response_id": first["id"]}
    assert client.post("/v1/responses", json=body).json()["model"] == "v2"


def test_an_alias_means_the_same_after_a_folder_of_its_name_appeared(
    client: TestClient, settings: Settings
) -> None:
    add_local_model(settings, "support")
    assert chat(client) == "v1"
    listed = [model for model in client.get("/v1/models").json()["data"] if model["id"] == "support"]
    assert [model["alias_of"] for model in listed] == [{"v1": 1.0}]


def test_an_alias_points_to_a_base_model(client: TestClient, engine: FakeEngine) -> None:
    point(client, {"owner/other": 1.0})
    assert chat(client) == "owner/other"
    assert (engine.requests[-1].base_model.name, engine.requests[-1].adapter) == ("owner/other", None)


def test_models_lists_aliases_and_deletes_none(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["support", "v2", "v1"]
    assert client.get("/v1/models/support").json()["alias_of"] == {"v1": 1.0}
    refused = client.delete("/v1/models/support")
    assert refused.status_code == 400
    assert "DELETE /aliases/support" in refused.json()["error"]["message"]


def evaluate(client: TestClient, *models: object, **fields: object) -> Any:
    return client.post("/evaluations", json={"rows": ROWS, "models": models, "graders": [GRADER], **fields})


def test_an_evaluation_is_of_the_model_that_the_alias_points_to_now(client: TestClient) -> None:
    made = evaluate(client, "support", "v2", baseline="support").json()
    point(client, {"v2": 1.0})
    found = client.get(f"/evaluations/{made['id']}").json()["spec"]["models"][0]
    assert (found["label"], found["adapter"], found["adapter_name"]) == ("support", "ad_v1", "v1")


def test_an_evaluation_of_several_models_needs_their_names(client: TestClient) -> None:
    point(client, {"v1": 0.9, "v2": 0.1})
    for models in (["support"], [{"adapter": "support"}]):
        error = evaluate(client, *models).json()["error"]
        assert (error["code"], error["hint"]) == ("alias_ambiguous", "Name 'v1' or 'v2'.")


def test_the_judge_of_an_evaluation_does_not_change_with_its_alias(client: TestClient) -> None:
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "support",
        "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    }
    made = evaluate(client, "v2", graders=[judge])
    assert made.status_code == 202, made.text
    assert made.json()["spec"]["graders"][0]["model"] == "ad_v1"


def test_a_job_and_an_export_take_an_alias_for_its_adapter(
    client: TestClient, database: Database, tmp_path: Any
) -> None:
    export = client.post("/adapters/support/exports", json={"format": "adapter"})
    assert (export.status_code, export.json()["adapter"]) == (202, "ad_v1")
    store = client.app.state.services.store  # type: ignore[attr-defined]
    with database.transaction() as session:
        dataset = make_dataset(session, store, tmp_path).id
    body = {"base_model": "owner/model", "dataset": dataset, "continue_from": "support"}
    job = client.post("/jobs", json=body)
    assert (job.status_code, job.json()["spec"]["continue_from"]) == (202, "ad_v1")


def test_fine_tuning_goes_on_from_what_the_alias_points_to(client: TestClient) -> None:
    rows = b"".join(
        json.dumps({"messages": [*HI, {"role": "assistant", "content": f"{n}"}]}).encode() + b"\n"
        for n in range(12)
    )
    file = client.post(
        "/v1/files", files={"file": ("rows.jsonl", rows)}, data={"purpose": "fine-tune"}
    ).json()
    made = client.post("/v1/fine_tuning/jobs", json={"model": "support", "training_file": file["id"]}).json()
    spec = client.get(f"/jobs/{made['id']}").json()["spec"]
    assert (spec["base_model"], spec["continue_from"]) == ("owner/model", "ad_v1")
