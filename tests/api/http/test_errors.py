import logging
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.main import create_app

JOB = {"base_model": "owner/model", "dataset": "ds_0000000000000000"}


def refused(client: TestClient, body: object = None, *, raw: str | None = None) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    answer = (
        client.post("/jobs", json=body) if raw is None else client.post("/jobs", content=raw, headers=headers)
    )
    assert answer.status_code == 422
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def test_an_unknown_route_has_the_common_error_format(client: TestClient) -> None:
    answer = client.get("/nope")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "type": "not_found_error",
        "code": "not_found",
        "message": "There is no route GET /nope.",
        "param": None,
        "hint": "GET /docs lists them.",
    }


def test_a_wrong_method_names_the_allowed_ones(client: TestClient) -> None:
    answer = client.put("/jobs")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert answer.json()["error"]["hint"] == "Allowed: GET, HEAD, POST."


def test_json_that_does_not_parse_is_named_with_its_place(client: TestClient) -> None:
    error = refused(client, raw='{"base_model": "a/b"')
    assert error["message"] == "The body is not valid JSON: Expecting ',' delimiter at character 20."
    assert error["param"] is None


@pytest.mark.parametrize("raw", ["[" * 9_000, "9" * 5000], ids=["nested too deeply", "too long a number"])
def test_json_that_breaks_the_parser_is_refused(client: TestClient, raw: str) -> None:
    assert "can't be read" in refused(client, raw=raw)["message"]


def test_a_body_sent_as_a_form_names_the_missing_header(client: TestClient) -> None:
    answer = client.post("/jobs", content="{}", headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.json()["error"]["hint"] == "Send JSON with the header `Content-Type: application/json`."


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"training": {"learning_rate": -1}}, "training.learning_rate", "must be greater than 0 (found -1)"),
        ({"training": {"bf16": "maybe"}}, "training.bf16", "must be 'auto'"),
        ({"training": {"fp16": True, "bf16": True}}, "training", "fp16 and bf16 exclude each other"),
        ({"lora": {"target_modules": [1]}}, "lora.target_modules.0", "must be a valid string"),
        ({"lora": []}, "lora", "lora must be a JSON object"),
        ({"base_model": "../up"}, "base_model", "'../up' is not possible: it is a Hub id"),
        ({"name": "my bot"}, "name", "'my bot' is not possible: a name is of letters A to Z, digits, dots"),
        ({"dataset": None}, "dataset", "must be a valid string"),
    ],
)
def test_a_malformed_field_is_named(
    client: TestClient, change: dict[str, Any], param: str, message: str
) -> None:
    error = refused(client, {**JOB, **change})
    assert error["param"] == param
    assert message in error["message"]


def test_several_problems_are_counted_and_the_first_is_shown_in_full(client: TestClient) -> None:
    error = refused(client, {"base_model": "a/b", "lora": {"r": 0}, "training": {"seed": "x"}})
    assert error["message"].startswith("dataset is missing. 2 more fields have a problem: ")
    assert error["param"] == "dataset"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"training": {"learning_rte": 1}}, "Did you mean `learning_rate`?"),
        ({"learning_rate": 1}, "Did you mean `training.learning_rate`?"),
        (
            {"lora": {"zzz": 1}},
            "Known here: r, alpha, dropout, bias, target_modules, modules_to_save, use_rslora, use_dora.",
        ),
    ],
)
def test_an_unknown_field_gets_a_suggestion(client: TestClient, change: dict[str, Any], hint: str) -> None:
    assert refused(client, {**JOB, **change})["hint"] == hint


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(client: TestClient, number: str) -> None:
    raw = '{"base_model": "a/b", "dataset": "ds_x", "training": {"weight_decay": ' + number + "}}"
    assert refused(client, raw=raw)["param"] == "training.weight_decay"


def test_a_query_parameter_out_of_range_is_named(client: TestClient) -> None:
    answer = client.get("/jobs", params={"limit": 201})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "limit"


def test_an_unexpected_error_is_logged_and_not_shown(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app: FastAPI = create_app(settings)

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("the password is swordfish")

    with TestClient(app) as client, caplog.at_level(logging.ERROR):
        answer = client.get("/boom")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "swordfish" not in answer.text
    request_id = answer.headers["x-request-id"]
    assert request_id in answer.json()["error"]["hint"]
    assert request_id in caplog.text
    assert "swordfish" in caplog.text


@pytest.mark.parametrize("path", ["/health", "/jobs", "/nope", "/jobs?limit=0"])
def test_every_answer_carries_a_fresh_request_id(client: TestClient, path: str) -> None:
    ids = {client.get(path).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
