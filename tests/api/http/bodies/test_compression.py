"""Compressed request bodies: read within the limits of what they unpack to."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message

from app.api.http.bodies.compression import Unpacked
from app.api.http.errors import BodyRefused
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.factories import make_adapter
from tests.fakes import FakeEngine, ServerThread

LIMIT = 1 << 20
CHAT = {"model": "helper", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}


def packed(**headers: str) -> dict[str, str]:
    return {"content-encoding": "gzip", **JSON, **headers}


@pytest.fixture
def limited(settings: Settings) -> Iterator[httpx.Client]:
    settings.max_body_bytes = settings.max_upload_bytes = LIMIT
    server = ServerThread(create_app(settings))
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
    server.stop()


@pytest.mark.parametrize("name", ["gzip", "GZIP", "x-gzip", "identity, gzip"])
def test_a_gzip_body_is_read(live: httpx.Client, engine: FakeEngine, database: Database, name: str) -> None:
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
    body = gzip.compress(json.dumps(CHAT).encode())
    answer = live.post("/v1/chat/completions", content=body, headers=packed(**{"content-encoding": name}))
    assert answer.status_code == 200


def test_a_gzip_upload_is_read(live: httpx.Client) -> None:
    form = httpx.Request("POST", "http://x", files={"file": ("rows.jsonl", b'{"text": "a row"}\n')})
    headers = {"content-type": form.headers["content-type"], "content-encoding": "gzip"}
    answer = live.post("/datasets", content=gzip.compress(form.read()), headers=headers)
    assert (answer.status_code, answer.json()["rows"]) == (201, 1)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/jobs", "/datasets"])
def test_a_bomb_is_refused_without_being_unpacked(limited: httpx.Client, path: str) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        answer = limited.post(path, content=bomb, headers=packed())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert most < 16 * LIMIT


def test_the_packed_bytes_count_too(limited: httpx.Client) -> None:
    def empty_gzip_files() -> Iterator[bytes]:
        for _ in range(100):
            yield gzip.compress(b"") * 1000

    answer = limited.post("/jobs", content=empty_gzip_files(), headers=packed())
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [b"{}", gzip.compress(b"{}")[:-4], gzip.compress(b"{}") + b"more", zlib.compress(b"{}")],
    # Not the bytes, which hold the time: each process of a test run would know the test under another name.
    ids=["not packed", "cut off", "with more behind it", "zlib"],
)
def test_what_is_not_gzip_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/chat/completions", content=body, headers=packed())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "body_not_gzip")


@pytest.mark.parametrize("name", ["br", "zstd", "gzip, gzip"])
def test_another_encoding_is_named(client: TestClient, name: str) -> None:
    answer = client.post("/jobs", content=b"{}", headers=packed(**{"content-encoding": name}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "content_encoding_unsupported")
    assert name in answer.json()["error"]["message"]


def test_an_empty_body_is_empty(client: TestClient) -> None:
    assert client.get("/jobs", headers={"content-encoding": "gzip"}).status_code == 200


@pytest.mark.parametrize("size", [1, 5, 10**6])
def test_pieces_are_small_and_whole_together(size: int) -> None:
    content = bytes(range(256)) * 2000 + b"\0" * 2_000_000
    body = gzip.compress(content[:5]) + gzip.compress(content)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def read() -> list[Message]:
        unpacked = Unpacked(receive)
        found = [await unpacked()]
        while found[-1]["more_body"]:
            found.append(await unpacked())
        return found

    found = asyncio.run(read())
    assert b"".join(message["body"] for message in found) == content[:5] + content
    assert max(len(message["body"]) for message in found) <= 256 << 10


def test_the_end_is_needed() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": gzip.compress(b"x" * 100)[:-9], "more_body": False}

    async def read() -> None:
        await Unpacked(receive)()

    with pytest.raises(BodyRefused):
        asyncio.run(read())
