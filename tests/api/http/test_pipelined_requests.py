"""Requests that come while the response to the one before them is written."""

import socket
import threading

import pytest
from starlette.types import Receive, Scope, Send

from tests.api.http.conftest import HOLD, POST, Start, application, ask, read_all


def hold(client: socket.socket, request: bytes = HOLD) -> bytes:
    """All that /hold responds with."""
    found = ask(client, request)
    while b"held" not in found:
        found += client.recv(1 << 16)
    return found


@pytest.mark.parametrize(
    "second",
    [
        POST + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 9000,
    ],
    ids=["unreadable", "too large"],
)
def test_a_refusal_is_never_written_into_the_response_before_it(start: Start, second: bytes) -> None:
    client = start()()
    found = hold(client)
    client.sendall(second)
    assert (found + read_all(client)).count(b"HTTP/1.1 ") == 1


def test_a_slow_second_request_is_not_refused_within_the_response_before_it(start: Start) -> None:
    client = start(request_seconds=0.05, min_body_bytes_per_second=1 << 20)()
    found = hold(client, HOLD + POST + b"Content-Length: 100000\r\n\r\n" + b"b" * 1000)
    assert (found + read_all(client)).count(b"HTTP/1.1 ") == 1


def test_the_request_being_answered_learns_that_its_client_is_gone(start: Start) -> None:
    is_ended = threading.Event()

    async def holding(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope, receive, send)
        is_ended.set()

    client = start(holding)()
    hold(client, HOLD + POST + b"Content-Length: 100000\r\n\r\n" + b"b" * 1000)
    client.close()
    assert is_ended.wait(20)
