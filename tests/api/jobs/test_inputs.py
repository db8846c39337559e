"""A job's other inputs: a validation dataset, an adapter to continue from; and their deletion."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.adapters import records as adapter_records
from app.core.jobs import queue
from app.core.work.failures import WorkFailure
from tests.factories import jsonl, make_dataset, make_job, make_spec

LORA = {"r": 8, "alpha": 32, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def dataset(services: Services) -> str:
    with services.database.transaction() as session:
        return make_dataset(session, services.store, services.settings.data_dir).id


@pytest.fixture
def other_dataset(services: Services) -> str:
    with services.database.transaction() as session:
        return make_dataset(session, services.store, services.settings.data_dir).id


@pytest.fixture
def adapter(services: Services) -> str:
    """The adapter `helper`; its job has ended."""
    with services.database.transaction() as session:
        fields: dict[str, Any] = {"name": "helper", "lora": LORA, "quantization": {"load_in_4bit": False}}
        make_job(session, **fields)
        lease = queue.claim(session, "worker", lease_seconds=30)
        assert lease
        adapter_id, artifact = adapter_records.name_artifact(lease.job_id, 1)
        spec = make_spec(**fields)
        adapter_records.add(
            session, adapter_id, spec=spec, job_id=lease.job_id, artifact=artifact, size_bytes=1
        )
        queue.succeed(session, lease, adapter_name="helper")
    return adapter_id


def submit(client: TestClient, dataset: str, **fields: Any) -> dict[str, Any]:
    body = {"base_model": "owner/model", "dataset": dataset, **fields}
    answer: dict[str, Any] = client.post("/jobs", json=body).json()
    return answer


def test_a_job_continues_from_an_adapter_with_its_settings(
    client: TestClient, dataset: str, adapter: str
) -> None:
    spec = submit(client, dataset, continue_from="helper")["spec"]
    assert spec["continue_from"] == adapter
    assert (spec["lora"]["r"], spec["lora"]["alpha"], spec["quantization"]["load_in_4bit"]) == (8, 32, False)


def test_settings_that_agree_may_be_given_again(client: TestClient, dataset: str, adapter: str) -> None:
    lora = {**LORA, "dropout": 0.0, "target_modules": ["v_proj", "q_proj"]}
    job = submit(client, dataset, continue_from="helper", lora=lora, quantization={"load_in_4bit": True})
    assert (job["spec"]["lora"]["dropout"], job["spec"]["quantization"]["load_in_4bit"]) == (0.0, True)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"base_model": "owner/other"}, "continue_from", "was made for owner/model, not for owner/other"),
        ({"lora": {**LORA, "r": 16}}, "lora.r", "was made with lora.r 8, not 16"),
        ({"lora": {**LORA, "target_modules": "all-linear"}}, "lora.target_modules", "['q_proj', 'v_proj']"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_with_what_differs(
    client: TestClient, dataset: str, adapter: str, fields: dict[str, Any], param: str, words: str
) -> None:
    error = submit(client, dataset, continue_from=adapter, **fields)["error"]
    assert (error["code"], error["param"]) == ("adapter_incompatible", param)
    assert words in error["message"]
    assert error["hint"]


def test_an_adapter_that_is_not_there_is_named(client: TestClient, dataset: str) -> None:
    error = submit(client, dataset, continue_from="nothing")["error"]
    assert (error["code"], error["param"]) == ("adapter_not_found", "continue_from")


def test_an_adapter_that_a_waiting_job_continues_from_is_not_deleted(
    client: TestClient, dataset: str, adapter: str
) -> None:
    job = submit(client, dataset, continue_from=adapter)
    refused = client.delete("/adapters/helper")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_in_use")
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete("/adapters/helper").status_code == 204


def test_a_dataset_that_a_waiting_job_evaluates_on_is_not_deleted(
    client: TestClient, dataset: str, other_dataset: str
) -> None:
    job = submit(client, dataset, validation_dataset=other_dataset)
    for used in (dataset, other_dataset):
        refused = client.delete(f"/datasets/{used}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "dataset_in_use")
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/datasets/{other_dataset}").status_code == 204


def test_a_validation_dataset_must_exist(client: TestClient, dataset: str) -> None:
    error = submit(client, dataset, validation_dataset="ds_x")["error"]
    assert (error["code"], error["param"]) == ("dataset_not_found", "validation_dataset")


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
LABELLED = {"prompt": "q", "completion": "a", "label": True}
EXAMPLE = {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    ("row", "method", "said", "hint"),
    [
        (
            PAIR,
            "sft",
            "has comparisons of two answers.",
            "Set method to dpo, orpo or kto, or name another dataset.",
        ),
        (LABELLED, "sft", "has answers with labels.", "Set method to kto"),
        (EXAMPLE, "dpo", "has answers to imitate.", "Set method to sft, or name another dataset."),
        (EXAMPLE, "orpo", "has answers to imitate.", "Set method to sft, or name another dataset."),
        (EXAMPLE, "kto", "has answers to imitate.", "Set method to sft, or name another dataset."),
        (LABELLED, "dpo", "has answers with labels.", "Set method to kto"),
        (PAIR, "dpo", None, None),
        (PAIR, "orpo", None, None),
        (PAIR, "kto", None, None),
        (LABELLED, "kto", None, None),
    ],
)
def test_a_method_learns_rows_of_its_kind(
    client: TestClient, row: dict[str, Any], method: str, said: str | None, hint: str | None
) -> None:
    found = client.post("/datasets", files={"file": ("rows.jsonl", jsonl([row]))}).json()["id"]
    answer = submit(client, found, method=method)
    if said is None:
        assert answer["state"] == "queued"
        return
    error = answer["error"]
    assert (error["code"], error["param"]) == ("dataset_unfit", "dataset")
    assert said in error["message"]
    assert str(hint) in error["hint"]
    spec = {"base_model": "owner/model", "dataset": found, "method": method}
    assert client.post("/jobs/preflight", json=spec).json()["error"] == error


def test_a_validation_dataset_has_rows_of_the_same_kind(client: TestClient, dataset: str) -> None:
    pairs = client.post("/datasets", files={"file": ("rows.jsonl", jsonl([PAIR]))}).json()["id"]
    error = submit(client, dataset, validation_dataset=pairs)["error"]
    assert (error["code"], error["param"]) == ("dataset_unfit", "validation_dataset")


def test_a_job_whose_dataset_is_gone_is_not_retried(
    client: TestClient, services: Services, dataset: str
) -> None:
    job = submit(client, dataset)
    with services.database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
        assert lease
        queue.fail(session, lease, WorkFailure("disk_full", "Full."))
    client.delete(f"/datasets/{dataset}")
    answer = client.post(f"/jobs/{job['id']}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dataset_not_found")
    assert client.get(f"/jobs/{job['id']}").json()["state"] == "failed"
