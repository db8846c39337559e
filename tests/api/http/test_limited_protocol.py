"""Requests that have no end, are too large, or do not come."""

import socket

import pytest
from starlette.types import Receive, Scope, Send

from tests.api.http.conftest import POST, Start, ask, read_all


async def reading_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body before it responds."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"read"})


def send_without_end(client: socket.socket, head: bytes, piece: bytes) -> int:
    """Send `piece` until the server closes the connection, 64 MB at most. Returns the bytes sent."""
    sent = 0
    try:
        client.sendall(head)
        while sent < 64 << 20:
            client.sendall(piece)
            sent += len(piece)
    except (ConnectionResetError, BrokenPipeError):
        pass
    return sent


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET / HTTP/1.1\r\nX-Long: ", b"a" * 65536),
        (b"GET / HTTP/1.1\r\n", b"X-Short: a\r\n" * 5000),
        (b"GET /", b"a" * 65536),
        (b"", b"\r\n" * 30000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ", b"a" * 65536),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),
    ],
    ids=["a header", "headers", "the path", "empty lines", "a trailer", "a chunk's extension"],
)
def test_what_has_no_end_closes_the_connection(start: Start, head: bytes, piece: bytes) -> None:
    client = start()()
    assert send_without_end(client, head, piece) < 32 << 20
    assert ask(start()()).startswith(b"HTTP/1.1 200")


def test_headers_over_the_limit_are_431_in_the_common_format(start: Start) -> None:
    client = start()()
    client.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 4096)
    found = read_all(client)
    assert found.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b'"code":"headers_too_large"' in found
    assert b"TUNESMITH_MAX_HEADER_BYTES" in found


def test_headers_within_the_limit_and_a_long_body_pass_in_pieces_of_any_size(start: Start) -> None:
    connect = start()
    request = POST + b"X-Long: " + b"a" * 3900 + b"\r\nContent-Length: 50000\r\n\r\n" + b"b" * 50000
    for size in (1 << 20, 777):
        client = connect()
        for offset in range(0, len(request), size):
            client.sendall(request[offset : offset + size])
        client.shutdown(socket.SHUT_WR)
        assert b"50000 bytes" in read_all(client)


def test_many_requests_on_one_connection_have_a_limit_each(start: Start) -> None:
    client = start()()
    request = b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 3000 + b"\r\n\r\n"
    client.sendall(request * 5)
    found = b""
    while found.count(b"0 bytes") < 5:
        assert b"HTTP/1.1 431" not in found
        found += client.recv(1 << 16)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo", b"\r\n"], ids=["nothing", "half", "a line"])
def test_a_request_that_does_not_come_is_408(start: Start, sent: bytes) -> None:
    client = start(request_seconds=0.05)()
    client.sendall(sent)
    assert b'"code":"request_too_slow"' in read_all(client)


def test_half_a_second_request_is_408_too(start: Start) -> None:
    client = start(request_seconds=0.05)()
    assert ask(client).startswith(b"HTTP/1.1 200")
    client.sendall(b"GET / HTTP/1.1\r\nHo")
    assert b"HTTP/1.1 408" in read_all(client)


def test_a_body_that_does_not_come_is_408(start: Start) -> None:
    client = start(reading_application, request_seconds=0.05, min_body_bytes_per_second=1 << 20)()
    client.sendall(POST + b"Content-Length: 100000\r\n\r\n" + b"b" * 1000)
    assert read_all(client).startswith(b"HTTP/1.1 408")


def test_a_response_that_takes_long_has_no_limit(start: Start) -> None:
    connect = start(request_seconds=0.05)
    client = connect()
    assert b"200 OK" in ask(client, b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"HTTP/1.1 408" in read_all(connect())  # as long as the limit and a sweep
    client.setblocking(False)
    while True:
        try:
            assert client.recv(1 << 16) != b""
        except BlockingIOError:
            break


def test_what_is_not_http_is_400_in_the_common_format(start: Start) -> None:
    client = start()()
    client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert b'"code":"request_unreadable"' in read_all(client)
