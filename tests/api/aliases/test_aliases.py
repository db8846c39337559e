"""Aliases over HTTP: made, moved, rolled back, deleted; names that are taken; who may not be deleted."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from app.core.adapters import imports, records as adapter_records
from app.core.errors.adapters import AdapterNameTaken
from app.core.settings import Settings
from app.core.specs.job import JobSpec, QuantizationSpec
from app.core.storage.database import Database
from app.main import create_app
from tests.api.openai.test_models import add_local_model
from tests.factories import make_adapter, make_job


@pytest.fixture(autouse=True)
def adapters(database: Database) -> None:
    with database.transaction() as session:
        for name in ("v1", "v2"):
            make_adapter(session, id=f"ad_{name}", name=name)
        make_adapter(session, id="ad_step", name="v2:ckpt-step-20", step=20)


def put(client: TestClient, target: str | dict[str, float], **headers: str) -> Any:
    body = {"target": target} if isinstance(target, str) else {"shares": target}
    return client.put(
        "/aliases/support", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def submit_import(session: Session, *, name: str) -> None:
    imports.submit(
        session,
        "ad_new",
        name=name,
        base_model="owner/model",
        quantization=QuantizationSpec(),
        lora=None,
        chat_template=None,
        artifact="adapters/ad_new",
        size_bytes=1,
        max_waiting=10,
    )


def shares(answer: Any) -> dict[str, float]:
    return {target["name"]: target["share"] for target in answer["targets"]}


def test_an_alias_is_made_moved_and_rolled_back(client: TestClient) -> None:
    made = put(client, "v1")
    assert (made.status_code, made.headers["etag"], shares(made.json())) == (201, '"1"', {"v1": 1.0})
    moved = put(client, {"v1": 0.9, "ad_v2": 0.1})
    assert (moved.status_code, shares(moved.json())) == (200, {"v1": 0.9, "v2": 0.1})

    back = client.post("/aliases/support/rollback")
    assert (back.headers["etag"], shares(back.json())) == ('"3"', {"v1": 1.0})
    versions = client.get("/aliases/support/versions").json()["data"]
    assert [(one["version"], one["action"], one["restored"]) for one in versions] == [
        (3, "rollback", 1),
        (2, "put", None),
        (1, "put", None),
    ]


def test_pages_of_versions_follow_each_other(client: TestClient) -> None:
    for number in range(5):
        put(client, f"v{1 + number % 2}")
    first = client.get("/aliases/support/versions", params={"limit": 3}).json()
    second = client.get("/aliases/support/versions", params={"limit": 3, "before": first["next"]}).json()
    assert [one["version"] for one in first["data"] + second["data"]] == [5, 4, 3, 2, 1]
    assert second["next"] is None


@pytest.mark.parametrize("target", ["v2:ckpt-step-20", "small", "owner/model"])
def test_an_alias_points_to_a_checkpoint_or_a_base_model(
    client: TestClient, settings: Settings, target: str
) -> None:
    add_local_model(settings, "small")
    assert shares(put(client, target).json()) == {target: 1.0}
    assert client.get("/aliases/support").json()["targets"][0]["step"] == (20 if ":" in target else None)


def test_a_lost_race_is_a_412(client: TestClient) -> None:
    tag = put(client, "v1").headers["etag"]
    assert put(client, "v2", if_match=tag).status_code == 200

    lost = put(client, "v1", if_match=tag)
    assert (lost.status_code, lost.json()["error"]["code"]) == (412, "alias_changed")
    assert put(client, "v1", if_none_match="*").status_code == 412
    assert client.delete("/aliases/support", headers={"if-match": tag}).status_code == 412
    assert client.post("/aliases/support/rollback", headers={"if-match": tag}).status_code == 412
    assert shares(client.get("/aliases/support").json()) == {"v2": 1.0}
    assert put(client, "v1", if_match="*").status_code == 200
    assert client.put("/aliases/other", json={"target": "v1"}, headers={"if-match": "*"}).status_code == 412


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "give either"),
        ({"target": "v1", "shares": {"v1": 1}}, "give either"),
        ({"shares": {"v1": 0.9, "v2": 0.01}}, "add up to 0.91"),
        ({"shares": {"v1": 1.5, "v2": -0.5}}, "shares"),
        ({"shares": {"v1": 0.5, "ad_v1": 0.5}}, "named twice"),
        ({"target": "support2"}, "is an alias itself"),
    ],
)
def test_where_an_alias_can_not_point_is_said(client: TestClient, body: object, words: str) -> None:
    client.put("/aliases/support2", json={"target": "v1"})
    answer = client.put("/aliases/support", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("target", ["v3", "a/b/c"])
def test_there_must_be_a_model(client: TestClient, target: str) -> None:
    answer = put(client, target)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")


@pytest.mark.parametrize("name", ["v1", "ad_v1", "small"])
def test_the_name_of_a_model_is_taken(client: TestClient, settings: Settings, name: str) -> None:
    add_local_model(settings, "small")
    answer = client.put(f"/aliases/{name}", json={"target": "v2"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "alias_name_taken")


def test_an_adapter_does_not_take_the_name_of_an_alias(client: TestClient, database: Database) -> None:
    put(client, "v1")
    with database.transaction() as session, pytest.raises(AdapterNameTaken, match="an alias 'support'"):
        submit_import(session, name="support")


def test_the_adapter_of_a_job_with_an_alias_s_name_gets_a_number(
    client: TestClient, database: Database
) -> None:
    put(client, "v1")
    with database.transaction() as session:
        job = make_job(session, name="support")
        spec = JobSpec.model_validate(job.spec)
        made = adapter_records.add(
            session, "ad_new", spec=spec, job_id=job.id, artifact="adapters/ad_new", size_bytes=1
        )
        assert made.name == "support-2"


def test_what_an_alias_points_to_is_not_deleted(client: TestClient) -> None:
    put(client, {"v1": 0.5, "v2": 0.5})
    for path in ("/adapters/v1", "/v1/models/v1"):
        answer = client.delete(path)
        assert answer.status_code == 409
        assert "'support'" in answer.json()["error"]["message"]
    assert client.delete("/aliases/support").status_code == 204
    assert client.delete("/adapters/v1").status_code == 204


def test_a_deleted_alias_is_gone_and_says_how_it_comes_back(client: TestClient) -> None:
    put(client, "v1")
    client.delete("/aliases/support")
    answer = client.get("/aliases/support")
    assert answer.status_code == 404
    assert "POST /aliases/support/rollback" in answer.json()["error"]["hint"]
    assert client.delete("/aliases/support").status_code == 404
    assert client.get("/aliases").json()["data"] == []
    assert client.post("/aliases/support/rollback").status_code == 200


def test_two_apis_on_one_database_agree_at_once(client: TestClient, settings: Settings) -> None:
    with TestClient(create_app(settings)) as other:
        put(client, "v1")
        assert shares(other.get("/aliases/support").json()) == {"v1": 1.0}
        put(other, "v2")
        assert shares(client.get("/aliases/support").json()) == {"v2": 1.0}


def test_whoever_takes_an_alias_for_an_adapter_learns_what_it_is(client: TestClient) -> None:
    put(client, "v1")
    error = client.get("/adapters/support").json()["error"]
    assert error["message"] == "There is no adapter 'support': it is an alias of v1."
