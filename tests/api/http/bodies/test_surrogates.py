"""Halves of surrogate pairs become U+FFFD in every body: no route, no field and no kind of text fails."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.api.http.bodies.surrogates import replace_surrogates
from app.core.storage.database import Database
from tests.factories import make_adapter
from tests.fakes import FakeEngine

HALF = "\ud83d"
# Without a worker nothing generates, and no preview or preflight runs.
NO_WORKER = 503


@pytest.mark.parametrize(
    ("body", "repaired"),
    [
        (rb'"\ud83d"', '"�"'),
        (rb'"\uDE00x\uD83D"', '"�x�"'),
        (rb'"\ud83d\ud83d\ude00"', '"�\U0001f600"'),
        (rb'"\ud83d\ude00"', '"\U0001f600"'),
        (rb'"\\ud83d"', '"\\\\ud83d"'),
        (rb'"\\\ud83d"', '"\\\\�"'),
        (b'"\xed\xa0\xbd"', '"�"'),
        (rb'{"\ud83d": 1}', '{"�": 1}'),
        (rb'"\n\u00e9"', '"\\né"'),
    ],
)
def test_only_halves_are_replaced(body: bytes, repaired: str) -> None:
    assert json.loads(replace_surrogates(body)) == json.loads(repaired)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be"])
def test_a_body_of_any_encoding_of_json_is_repaired(
    live: httpx.Client, engine: FakeEngine, database: Database, encoding: str
) -> None:
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
    body = '{"model": "helper", "messages": [{"role": "user", "content": "Hi \ud83d"}]}'
    answer = live.post(
        "/v1/chat/completions",
        content=body.encode(encoding, "surrogatepass"),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200
    assert (engine.requests[0].messages or [])[0].content == "Hi �"


def test_no_text_of_any_route_fails_on_half_a_surrogate_pair(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    """Every operation of the OpenAPI document, with half a pair in each text that it takes, one at a time."""
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
    document = client.get("/openapi.json").json()
    tried = 0
    for path, method, operation in operations(document):
        url = re.sub(r"{\w+}", "%ED%A0%BD", path)
        query = {one["name"]: HALF for one in operation.get("parameters", []) if one["in"] == "query"}
        for options in requests(operation, document):
            params = {name: value.encode(errors="surrogatepass") for name, value in query.items()}
            answer = client.request(method, url, params=params, **options)
            assert answer.status_code < 500 or answer.status_code == NO_WORKER, (method, path, options)
            tried += 1
    assert tried > 300


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def requests(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The bodies to try, as options of the client."""
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        yield {}
    for media_type, described in content.items():
        if media_type == "application/json":
            for body in bodies(described["schema"], document):
                yield {"content": json.dumps(body), "headers": {"content-type": media_type}}
        else:
            yield from forms(described["schema"], document)


def forms(schema: dict[str, Any], document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A form of texts with half a pair, as bytes and in a character set that can write one."""
    names = [name for name in resolve(schema, document)["properties"] if name not in ("file", "purpose")]
    for charset, half in (("utf-8", b"\xed\xa0\xbd"), ("unicode_escape", rb"\ud83d")):
        file = part(b"file", b'{"text": "x"}\n', b'; filename="%b"' % half) + part(b"purpose", b"fine-tune")
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        for more in [b"", *(part(name.encode(), half) for name in names)]:
            yield {"content": file + more + b"--b--\r\n", "headers": {"content-type": kind}}


def part(name: bytes, content: bytes, more: bytes = b"") -> bytes:
    """A part of a form."""
    return b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name, more, content)


def bodies(schema: dict[str, Any], document: dict[str, Any]) -> Iterator[Any]:
    """Bodies of a schema: as small as it allows, or with half a pair in one text or one name."""
    small = example(schema, document)
    yield small
    found = resolve(schema, document)
    if isinstance(small, dict):
        yield small | {HALF: HALF}
        for name, field in found.get("properties", {}).items():
            for value in texts(field, document):
                yield small | {name: value}


def texts(schema: dict[str, Any], document: dict[str, Any], depth: int = 0) -> Iterator[Any]:
    """Values of a schema with half a pair in one of their texts."""
    schema = resolve(schema, document)
    branches = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    if branches:
        for branch in branches:
            yield from texts(branch, document, depth)
    elif "properties" in schema and depth < 4:
        small = example(schema, document)
        for name, field in schema["properties"].items():
            for value in texts(field, document, depth + 1):
                yield small | {name: value}
    elif schema.get("type") == "array":
        for value in texts(schema.get("items", {}), document, depth):
            yield [value]
    elif schema.get("type") == "object" or not schema.get("type"):
        yield {HALF: HALF}
        yield {"x": {"y": [HALF]}}
        yield HALF
    elif schema["type"] == "string":
        yield HALF


def example(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A value of the schema, with the needed fields alone."""
    schema = resolve(schema, document)
    for branches in ("anyOf", "oneOf"):
        if branches in schema:
            return example(schema[branches][0], document)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            return {name: example(fields[name], document) for name in schema.get("required", [])}
        case "array":
            return [example(schema.get("items", {}), document)] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "null":
            return None
    return "helper"


def resolve(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The schema, or the one that it refers to."""
    found: dict[str, Any] = schema
    for part in schema.get("$ref", "").split("/")[1:]:
        found = (document if found is schema else found)[part]
    return found
