import asyncio
import socket
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.api.http.bodies import limit
from app.api.http.bodies.limit import BodyLimitMiddleware
from app.core.settings import Settings
from app.main import create_app
from tests.fakes import ServerThread

LIMIT = 10_000


@pytest.fixture
def small(settings: Settings) -> Iterator[httpx.Client]:
    settings.max_upload_bytes = LIMIT
    settings.max_body_bytes = LIMIT // 10
    server = ServerThread(create_app(settings))
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
    server.stop()


def test_an_upload_that_says_it_is_too_large_is_refused_before_it_is_sent(small: httpx.Client) -> None:
    head = f"POST /datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode()
    with socket.create_connection((small.base_url.host, small.base_url.port or 0), timeout=20) as connection:
        connection.sendall(head)
        answer = connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer
    assert b'"code":"too_large"' in answer
    assert b"TUNESMITH_MAX_UPLOAD_BYTES" in answer


def test_an_upload_that_does_not_say_its_length_is_counted(small: httpx.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(100_000):
            sent += 1000
            yield b"x" * 1000

    try:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = small.post("/datasets", content=endless(), headers=headers)
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server closed the connection; curl reads the answer all the same, httpx gives up
    assert sent < 50_000_000


def test_other_bodies_have_a_limit_of_their_own(small: httpx.Client) -> None:
    answer = small.post("/jobs", json={"base_model": "x" * LIMIT})
    assert answer.status_code == 413
    assert answer.json()["error"]["hint"] == "The limit is TUNESMITH_MAX_BODY_BYTES."


def test_a_body_within_the_limit_passes(small: httpx.Client) -> None:
    row = b'{"text": "' + b"x" * (LIMIT - 1000) + b'"}'
    assert small.post("/datasets", files={"file": ("rows.jsonl", row)}).status_code == 201


def test_a_request_without_a_key_is_refused_before_the_upload_is_read(settings: Settings) -> None:
    settings.api_key = settings.api_key or type(settings).model_validate({"api_key": "k"}).api_key
    server = ServerThread(create_app(settings))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 401")
    server.stop()


def of_many(part: str, count: int, path: str = "/jobs") -> tuple[str, str]:
    return path, "[" + ",".join([part] * count) + "]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        of_many("{}", 11_000),
        of_many("[]", 11_000),
        of_many("1", 11_000),
        ("/jobs", "{" + ",".join(f'"field {number}": 1' for number in range(11_000)) + "}"),
        ("/jobs", "[" * 11_000),
        of_many("{}", 11_000, "/v1/completions"),
        of_many("1", 1_100_000, "/v1/completions"),
    ],
)
@pytest.mark.parametrize("media_type", ["application/json", "application/x+json; charset=utf-8"])
def test_a_json_body_of_too_many_parts_is_never_parsed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: str, media_type: str
) -> None:
    async def parse(_: Request) -> None:
        raise AssertionError("the body was parsed")

    monkeypatch.setattr(Request, "json", parse)
    answer = client.post(path, content=body, headers={"content-type": media_type})
    assert answer.status_code == 413
    assert "more than 10,000 parts" in answer.content.decode()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32-le"])
def test_the_parts_of_a_json_body_are_counted_in_any_encoding(client: TestClient, encoding: str) -> None:
    # One byte of U+2200 is a quote in UTF-8.
    body = '["\u2200",' + ",".join(["{}"] * 11_000) + "]"
    answer = client.post("/jobs", content=body.encode(encoding), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_text_may_hold_any_number_of_brackets_commas_and_quotes(client: TestClient) -> None:
    text = '{"a": [1, 2, \\"3\\"]}, ' * 20_000
    body = {"url": "https://8.8.8.8/", "name": text}
    answer = client.post("/webhooks", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "name"


def test_a_prompt_of_many_tokens_is_read_and_one_wrong_token_is_one_error(client: TestClient) -> None:
    for prompt, wrong in (
        ([1] * 50_000 + [-1], "prompt.50000"),
        ([[1] * 50_000, [-1] * 50_000], "prompt.1.0"),
    ):
        answer = client.post("/v1/completions", json={"model": "nobody", "prompt": prompt})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == wrong
        assert len(answer.content) < 1000


@pytest.mark.timeout(15)  # the first took 36 s while strings without an end were searched for
@pytest.mark.parametrize(
    "shape",
    [
        b'"' + b'\\"' * 100_000,
        b'"' + b'\\"\\\\' * 50_000,
        b'{"a": "' + b'\\"x' * 70_000 + b"\\",
    ],
)
def test_a_string_without_an_end_is_read_once(client: TestClient, shape: bytes) -> None:
    answer = client.post("/jobs", content=shape, headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_a_string_ends_at_its_own_quote() -> None:
    bodies = {
        rb'["\\\"{",{}]': rb"[,{}]",
        rb'["\\\\",{}]': rb"[,{}]",
        b'["\\\n{",{}]': b"[,{}]",
        rb'[{},"{\"{': b"[{},",
        b'[{},"{\\': b"[{},\\",
    }
    assert {body: limit._STRING.sub(b"", body) for body in bodies} == bodies


@pytest.mark.parametrize(
    ("path", "media_type", "is_buffered"),
    [
        ("/jobs", "application/json", True),
        ("/jobs", "Application/Problem+JSON ; charset=utf-8", True),
        ("/jobs", "application/json\xa0", True),
        ("/datasets", "application/json; a=b", True),
        ("/jobs", "multipart/form-data; boundary=json", False),
        ("/jobs", "text/plain; a=application/json", False),
        ("/jobs", "application/jsonl", False),
        ("/datasets", "multipart/form-data; boundary=application/json", False),
        ("/v1/files", "application/x+json", False),
    ],
)
def test_only_a_json_body_is_received_whole(
    settings: Settings, path: str, media_type: str, is_buffered: bool
) -> None:
    messages: list[Message] = []

    async def receive_one(scope: Scope, receive: Receive, send: Send) -> None:
        messages.append(await receive())

    pieces: list[Message] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
    ]

    async def receive() -> Message:
        return pieces.pop(0)

    async def send(_: Message) -> None:
        raise AssertionError("the request was refused")

    headers = [(b"content-type", media_type.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(BodyLimitMiddleware(receive_one, settings)(scope, receive, send))
    assert messages[0]["body"] == (b"ab" if is_buffered else b"a")
