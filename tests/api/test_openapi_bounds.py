"""Every number that a client may send has bounds in the OpenAPI document, and out of bounds is 422."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.main import create_app

LOWEST = {"minimum", "exclusiveMinimum"}
HIGHEST = {"maximum", "exclusiveMaximum"}


def numbers(
    schema: Any, document: dict[str, Any], place: str, seen: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """The schemas of numbers in a schema, with where they are."""
    if isinstance(schema, list):
        for part in schema:
            yield from numbers(part, document, place, seen)
    if not isinstance(schema, dict):
        return
    if name := schema.get("$ref"):
        if name not in seen:
            found = document["components"]["schemas"][name.rpartition("/")[2]]
            yield from numbers(found, document, place, seen | {name})
        return
    if schema.get("type") in ("integer", "number") and "const" not in schema and "enum" not in schema:
        yield place, schema
    for name, part in schema.get("properties", {}).items():
        yield from numbers(part, document, f"{place}.{name}", seen)
    for key in ("items", "anyOf", "oneOf", "allOf", "additionalProperties", "prefixItems"):
        yield from numbers(schema.get(key), document, place, seen)


def test_every_number_of_a_request_has_bounds(settings: Settings) -> None:
    document = create_app(settings).openapi()
    unbounded = []
    found = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            schemas = [(each["name"], each["schema"]) for each in operation.get("parameters", [])]
            contents = operation.get("requestBody", {}).get("content", {})
            schemas += [("body", content["schema"]) for content in contents.values()]
            for name, schema in schemas:
                for place, number in numbers(schema, document, name, frozenset()):
                    found += 1
                    if not (LOWEST & number.keys() and HIGHEST & number.keys()):
                        unbounded.append(f"{method} {path}: {place}")
    assert found > 50
    assert not unbounded, "\n".join(unbounded)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("training", "max_steps", 1e30),
        ("training", "max_steps", 10**25),
        ("training", "neftune_noise_alpha", 1e308),
        ("training", "weight_decay", 1e308),
        ("training", "max_grad_norm", 1e300),
        ("training", "save_steps", 10**18),
        ("lora", "alpha", 1e308),
        ("lora", "alpha", 1e-320),
    ],
)
def test_a_number_out_of_bounds_is_named(client: TestClient, part: str, field: str, value: float) -> None:
    spec = {"base_model": "owner/model", "dataset": "ds_x", part: {field: value}}
    answer = client.post("/jobs", json=spec)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == f"{part}.{field}"
