"""POST /jobs/preflight and GET /datasets/{id}/preview against an engine with a scripted response."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.engine import workers
from app.core.engine.messages import Failed, ServingPath
from app.core.engine.preflight import (
    PreflightRequest,
    Preview,
    PreviewRequest,
)
from app.core.engine.serving import Serving
from app.core.engine.state import EngineState, ServedPath
from app.core.engine.workers import WorkerReport
from app.core.jobs import events, records as job_records
from app.core.jobs.events import Metrics
from app.core.specs.states import JobState
from tests.api.jobs.conftest import ANSWER, MODEL, FakePreflight
from tests.factories import CHAT_ROW, make_adapter, make_dataset, make_job


def ask(client: TestClient, dataset: str, **fields: Any) -> Any:
    return client.post("/jobs/preflight", json={"base_model": MODEL, "dataset": dataset, **fields})


def test_preflight_passes_the_job_on(client: TestClient, engine: FakePreflight, dataset: str) -> None:
    response = ask(client, dataset, lora={"r": 8})

    assert response.json() == ANSWER.model_dump(mode="json")
    path, body, token = engine.asked[0]
    request = PreflightRequest.model_validate_json(body)
    assert (path, token) == ("/preflight", "Bearer secret")
    assert (request.spec.lora.r, request.dataset.rows) == (8, 1)
    assert request.dataset.size_bytes > 0


def test_preflight_says_how_fast_the_path_was_that_will_serve(
    client: TestClient, engine: FakePreflight, services: Services, dataset: str
) -> None:
    served = [ServedPath(base_model=MODEL, path=ServingPath.GENERAL, tokens_per_second=20)]
    engine.register(services.database, EngineState(served=served))
    serving = Serving(path=ServingPath.GENERAL, reason="lora.use_dora")
    engine.answer = ANSWER.model_copy(update={"serving": serving})

    assert ask(client, dataset).json()["serving"] == {
        "path": "general",
        "reason": "lora.use_dora",
        "tokens_per_second": 20,
    }


def test_preflight_passes_the_other_inputs_on(
    client: TestClient, engine: FakePreflight, services: Services, dataset: str, tmp_path: Path
) -> None:
    with services.database.transaction() as session:
        other = make_dataset(session, services.store, tmp_path, [CHAT_ROW] * 3).id
        adapter = make_adapter(session, base_model=MODEL).id

    ask(client, dataset, validation_dataset=other, continue_from="helper")

    request = PreflightRequest.model_validate_json(engine.asked[0][1])
    assert request.validation_dataset is not None
    assert (request.validation_dataset.rows, request.spec.continue_from) == (3, adapter)


def test_preview_passes_its_parameters_on(client: TestClient, engine: FakePreflight, dataset: str) -> None:
    engine.answer = Preview(data=[], next=None, warnings=[])
    parameters = {"base_model": MODEL, "limit": 3, "after": 7, "assistant_only_loss": True}

    response = client.get(f"/datasets/{dataset}/preview", params=parameters)

    assert response.json() == {"data": [], "next": None, "warnings": []}
    request = PreviewRequest.model_validate_json(engine.asked[0][1])
    assert (request.limit, request.after, request.assistant_only_loss) == (3, 7, True)


def test_preflight_and_preview_name_fields_that_are_not_used(
    client: TestClient, engine: FakePreflight, services: Services, tmp_path: Path
) -> None:
    with services.database.transaction() as session:
        row = make_dataset(session, services.store, tmp_path, [{**CHAT_ROW, "id": 1}] * 2)
        tools = {"field": "tools", "rows": 1, "changes_learning": True, "lines": [1]}
        row.unused_fields = [tools, *row.unused_fields]
        dataset = row.id
    said = (
        "Not used, although their names say that they change what is learned: 'tools' (1 row). "
        "Not used: 'id' (2 rows)."
    )
    warnings = ask(client, dataset, validation_dataset=dataset).json()["warnings"]
    assert warnings == [
        {"code": "unused_fields", "message": said},
        {"code": "unused_fields", "message": f"The validation dataset: {said}"},
    ]
    engine.answer = Preview(data=[], next=None, warnings=[])
    preview = client.get(f"/datasets/{dataset}/preview", params={"base_model": MODEL}).json()
    assert preview["warnings"] == warnings[:1]


@pytest.mark.parametrize("path", ["preflight", "preview"])
def test_without_a_worker_there_is_no_preflight_or_preview(
    client: TestClient, dataset: str, path: str
) -> None:
    if path == "preflight":
        response = ask(client, dataset)
    else:
        response = client.get(f"/datasets/{dataset}/preview", params={"base_model": MODEL})

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_engine"
    assert "python -m worker" in response.json()["error"]["hint"]


@pytest.mark.parametrize(
    ("kind", "status"), [("invalid", 422), ("not_found", 404), ("unavailable", 503), ("internal", 500)]
)
def test_a_refusal_keeps_its_code(
    client: TestClient, engine: FakePreflight, dataset: str, kind: Any, status: int
) -> None:
    engine.status = status
    engine.answer = Failed(kind=kind, code="bad_target_modules", message="No.", hint="Yes.")

    response = ask(client, dataset)

    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["message"], error["hint"]) == ("bad_target_modules", "No.", "Yes.")


def test_a_malformed_response_of_the_engine_is_an_error(
    client: TestClient, engine: FakePreflight, dataset: str
) -> None:
    engine.answer = None

    response = ask(client, dataset)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")


def test_an_engine_that_is_gone_is_an_error(client: TestClient, services: Services, dataset: str) -> None:
    report = WorkerReport("worker-1", ["serve"], engine_url="http://127.0.0.1:9", engine_token="secret")
    with services.database.transaction() as session:
        workers.heartbeat(session, report)

    assert ask(client, dataset).json()["error"]["code"] == "engine_failed"


def test_a_dead_workers_row_does_not_hide_the_living_engine(
    client: TestClient, services: Services, engine: FakePreflight, dataset: str
) -> None:
    report = WorkerReport("worker-0", ["serve"], engine_url="http://127.0.0.1:9", engine_token="secret")
    with services.database.transaction() as session:
        workers.heartbeat(session, report)

    assert ask(client, dataset).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"dataset": "ds_nothing"}, 404),
        ({"validation_dataset": "ds_nothing"}, 404),
        ({"continue_from": "nothing"}, 404),
        ({"base_model": "no-such-folder"}, 422),
        ({"lora": {"r": 0}}, 422),
        ({"surprise": 1}, 422),
    ],
)
def test_an_impossible_job_is_refused_before_the_engine_is_asked(
    client: TestClient, engine: FakePreflight, dataset: str, fields: dict[str, Any], status: int
) -> None:
    assert ask(client, **{"dataset": dataset, **fields}).status_code == status
    assert engine.asked == []


@pytest.mark.parametrize("parameters", [{}, {"base_model": "../x"}, {"base_model": MODEL, "limit": 0}])
def test_a_preview_of_nothing_is_refused(client: TestClient, dataset: str, parameters: Any) -> None:
    assert client.get(f"/datasets/{dataset}/preview", params=parameters).status_code == 422


def finish_job(services: Services, speeds: list[float | None], **spec: Any) -> None:
    with services.database.transaction() as session:
        job = make_job(session, base_model=MODEL, **spec)
        job.state, job.finished_at = JobState.SUCCEEDED, job.created_at
        points = [
            Metrics(step=step, total_steps=9, epoch=1, loss=1, tokens_per_second=speed)
            for step, speed in enumerate(speeds)
        ]
        events.append(session, job.id, points)
        assert job_records.get(session, job.id).state == JobState.SUCCEEDED


def test_time_comes_from_the_last_job_like_it(
    client: TestClient, services: Services, engine: FakePreflight, dataset: str
) -> None:
    finish_job(services, [1.0, 20.0, 25.0, None])
    finish_job(services, [7000.0], training={"packing": True})

    assert ask(client, dataset).json()["time"] == {
        "seconds": 50.0,
        "sample_seconds": 5.0,
        "reference_seconds": 0.0,
        "tokens_per_second": 20.0,
        "basis": "measured",
    }


def test_other_jobs_do_not_change_the_time(
    client: TestClient, services: Services, engine: FakePreflight, dataset: str
) -> None:
    finish_job(services, [20.0], quantization={"load_in_4bit": False})
    finish_job(services, [20.0], resources={"gpus": 2})
    finish_job(services, [None])

    assert ask(client, dataset).json()["time"]["basis"] == "guess"


@pytest.mark.parametrize(
    ("load_in_4bit", "strategy", "basis"),
    [(True, "ddp", "measured"), (False, "auto", "measured"), (False, "fsdp", "guess")],
)
def test_several_gpus_are_as_fast_as_the_last_that_shared_a_job_alike(
    client: TestClient,
    services: Services,
    engine: FakePreflight,
    dataset: str,
    load_in_4bit: bool,
    strategy: str,
    basis: str,
) -> None:
    quantization = {"load_in_4bit": load_in_4bit}
    finish_job(services, [20.0], quantization=quantization, resources={"gpus": 2})

    resources = {"gpus": 2, "strategy": strategy}
    answer = ask(client, dataset, quantization=quantization, resources=resources)

    assert answer.json()["time"]["basis"] == basis
