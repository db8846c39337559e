from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from app.api.generate.schemas import GenerateBody
from app.api.openai.chat import ChatBody
from app.api.openai.completions import CompletionBody
from app.core.specs.job import JobSpec


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_every_field_is_described(document: dict[str, Any]) -> None:
    silent = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, found in schema.get("properties", {}).items()
        if not {"description", "$ref", "const"} & found.keys()
    ]
    assert silent == []


def test_every_parameter_and_operation_is_described(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{name} {parameter['name']}"


def test_every_error_has_the_common_format(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        shape = {"$ref": f"#/components/schemas/{'OpenAIError' if ' /v1/' in name else 'ErrorResponse'}"}
        for status, response in operation["responses"].items():
            if status >= "400" and name != "get /ready":
                assert response["content"]["application/json"]["schema"] == shape, f"{name} {status}"
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/jobs", JobSpec),
        ("/generate", GenerateBody),
        ("/v1/chat/completions", ChatBody),
        ("/v1/completions", CompletionBody),
    ],
)
def test_the_examples_are_valid(document: dict[str, Any], path: str, model: type[BaseModel]) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) >= 2
    for example in content["examples"].values():
        model.model_validate(example["value"])


def test_the_docs_page_is_served(client: TestClient) -> None:
    page = client.get("/docs").text
    script = "/docs/assets/swagger-ui-bundle.js"
    assert script in page
    assert "https://" not in page
    assert client.get(script).status_code == 200
