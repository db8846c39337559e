"""Preflight and preview over the engine's real HTTP, in its real processes."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.base_models.messages import Fit, HubSearch
from app.core.datasets.rows import Completion, Row, write_row
from app.core.engine.messages import Failed
from app.core.engine.preflight import (
    CheckRequest,
    DatasetRef,
    HeldOut,
    MemoryFit,
    Preflight,
    PreflightRequest,
    Preview,
    PreviewRequest,
)
from tests.factories import make_spec
from tests.tiny_model import NAME
from tests.worker.preflight.conftest import RunningEngine, make_rows


@pytest.fixture
def dataset(shared_folder: Path) -> DatasetRef:
    return write(shared_folder, make_rows(20), "rows")


def write(folder: Path, rows: list[Row], name: str) -> DatasetRef:
    content = b"".join(write_row(line, row) for line, row in enumerate(rows, start=1))
    (folder / name).write_bytes(content)
    return DatasetRef(artifact=name, rows=len(rows), size_bytes=len(content))


def preflight(engine: RunningEngine, dataset: DatasetRef, **spec: Any) -> httpx.Response:
    request = PreflightRequest(
        spec=make_spec(**{"base_model": NAME, "lora": {"r": 4}, **spec}), dataset=dataset
    )
    return engine.http.post("/preflight", content=request.model_dump_json())


def test_preflight_answers(engine: RunningEngine, dataset: DatasetRef) -> None:
    response = preflight(engine, dataset)

    assert response.status_code == 200, engine.process.log_tail()
    answer = Preflight.model_validate_json(response.content)
    assert (answer.rows, answer.optimizer_steps, answer.fits) == (20, 5, True)
    assert answer.device.free_bytes <= answer.device.memory_bytes


def test_memory_fit_is_a_job_s_need_and_whether_that_is_free_while_serving(
    engine: RunningEngine, dataset: DatasetRef
) -> None:
    request = PreflightRequest(spec=make_spec(base_model=NAME, lora={"r": 4}), dataset=dataset)

    response = engine.http.post("/room", content=request.model_dump_json())

    memory_fit = MemoryFit.model_validate_json(response.content)
    total = Preflight.model_validate_json(preflight(engine, dataset).content).memory.total
    assert memory_fit.bytes == total
    assert memory_fit.fits


def test_the_rows_that_a_job_holds_out_are_found(engine: RunningEngine, dataset: DatasetRef) -> None:
    training = {"validation_split": 0.5}
    request = PreflightRequest(spec=make_spec(base_model=NAME, training=training), dataset=dataset)

    response = engine.http.post("/held_out", content=request.model_dump_json())

    assert len(HeldOut.model_validate_json(response.content).lines) == round(dataset.rows / 2)


def test_a_base_model_is_measured_searched_for_and_deleted(engine: RunningEngine) -> None:
    fit = engine.http.post("/fit", json={"base_model": NAME})
    assert Fit.model_validate_json(fit.content).fits
    # This engine is set not to ask the Hub.
    found = engine.http.post("/hub/search", json={"query": "a", "limit": 5})
    assert HubSearch.model_validate_json(found.content).state == "offline"
    removed = engine.http.post("/base-models/remove", json={"base_model": "owner/nowhere"})
    assert removed.json() == {"size_bytes": 0}
    assert engine.http.post("/base-models/remove", json={"base_model": "../.."}).status_code == 422
    anonymous = {"authorization": "Bearer wrong"}
    for path in ("/fit", "/hub/search", "/base-models/remove"):
        assert engine.http.post(path, json={}, headers=anonymous).status_code == 401


def test_preview_answers(engine: RunningEngine, dataset: DatasetRef) -> None:
    request = PreviewRequest(base_model=NAME, dataset=dataset, limit=2, assistant_only_loss=True)

    response = engine.http.post("/preview", content=request.model_dump_json())

    preview = Preview.model_validate_json(response.content)
    assert [row.line for row in preview.data] == [1, 2]
    assert preview.next == 2


@pytest.mark.parametrize(
    ("spec", "status", "code", "param"),
    [
        ({"lora": {"target_modules": ["nothing"]}}, 422, "bad_target_modules", "lora.target_modules"),
        ({"training": {"fp16": True}}, 422, "invalid_request", "training.fp16"),
        ({"base_model": "owner/missing"}, 503, "hub_unreachable", None),
    ],
)
def test_a_preflight_fails_with_the_error_of_the_job(
    engine: RunningEngine,
    dataset: DatasetRef,
    spec: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    response = preflight(engine, dataset, **spec)

    assert response.status_code == status
    failed = Failed.model_validate_json(response.content)
    assert (failed.code, failed.param) == (code, param)
    assert failed.message
    assert failed.hint


@pytest.mark.parametrize(
    ("spec", "status", "words"),
    [
        ({}, 200, '"is_here":true'),
        ({"base_model": "owner/missing"}, 200, '"is_here":false'),
        ({"lora": {"target_modules": ["q_proj", "v_porj"]}}, 422, "'v_proj'"),
        ({"lora": {"target_modules": ["lm_head"]}}, 422, "lm_head"),
    ],
)
def test_a_base_model_is_looked_at_for_a_job_that_is_about_to_be_submitted(
    engine: RunningEngine, spec: dict[str, Any], status: int, words: str
) -> None:
    request = CheckRequest(spec=make_spec(**{"base_model": NAME, **spec}))

    response = engine.http.post("/check", content=request.model_dump_json())

    assert response.status_code == status
    assert words in response.text


def test_rows_without_a_token_to_learn_are_an_error(engine: RunningEngine, shared_folder: Path) -> None:
    dataset = write(shared_folder, [Completion("word " * 60, "lost")], "lost")

    response = preflight(engine, dataset, training={"max_seq_length": 16})

    assert (response.status_code, response.json()["code"]) == (422, "nothing_to_learn")


def test_a_missing_file_is_not_found(engine: RunningEngine, dataset: DatasetRef) -> None:
    response = preflight(engine, dataset.model_copy(update={"artifact": "nowhere"}))

    assert (response.status_code, response.json()["code"]) == (404, "dataset_not_found")


@pytest.mark.parametrize("path", ["/preflight", "/preview"])
def test_a_wrong_token_is_refused(engine: RunningEngine, path: str) -> None:
    response = httpx.post(engine.url + path, headers={"Authorization": "Bearer wrong"}, content=b"{}")

    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/preflight", "/preview"])
@pytest.mark.parametrize("body", [b"", b"garbage", b"{}"])
def test_garbage_is_refused(engine: RunningEngine, path: str, body: bytes) -> None:
    assert engine.http.post(path, content=body).status_code == 422
