"""How many connections the server has at once, and which of them it closes for others."""

import socket
import threading

import pytest
from starlette.types import Receive, Scope, Send

from app.api.http import connections as counting
from app.api.http.connections import ConnectionLimits, client_address
from app.core.settings import Settings
from tests.api.http.conftest import Start, ask, read_all

LAST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_silent_connections_make_place_for_requests(start: Start) -> None:
    connect = start()
    silent = [connect() for _ in range(30)]
    assert all(ask(connect()).startswith(b"HTTP/1.1 200") for _ in range(30))
    for found in map(read_all, silent[:22]):
        assert found.startswith(b"HTTP/1.1 503")
        assert b'"code":"too_many_connections"' in found


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_burst_of_connections_with_requests_gets_a_response_on_each(start: Start, loop: str) -> None:
    """asyncio accepts all of them before it reads any."""
    blocking, released = threading.Event(), threading.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/block":
            blocking.set()
            released.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    connect = start(application, loop=loop, max_connections=4)
    blocks = connect()
    blocks.sendall(b"GET /block HTTP/1.1\r\nHost: localhost\r\n\r\n")
    blocking.wait()
    clients = [connect() for _ in range(8)]
    for client in clients:
        client.sendall(LAST)
    released.set()
    statuses = [read_all(client)[9:12] for client in clients]
    assert set(statuses) <= {b"200", b"503"}
    assert statuses.count(b"200") >= 4


def test_a_connection_between_requests_outlives_the_silent_ones(start: Start) -> None:
    connect = start()
    client = connect()
    assert ask(client).startswith(b"HTTP/1.1 200")
    for _ in range(30):
        connect()
    assert ask(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", ["max_connections", "max_connections_per_address"])
def test_responses_in_progress_are_not_closed_for_others(start: Start, name: str) -> None:
    connect = start(**{name: 3})
    held = [connect() for _ in range(3)]
    for client in held:
        assert b"200 OK" in ask(client, b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = read_all(connect())
    assert found.startswith(b"HTTP/1.1 503")
    assert b'"code":"too_many_connections"' in found
    held[0].close()
    # The server learns of that soon; until then it refuses.
    while not (found := ask_or_nothing(connect())).startswith(b"HTTP/1.1 200"):
        assert found == b"" or found.startswith(b"HTTP/1.1 503")


def ask_or_nothing(client: socket.socket) -> bytes:
    try:
        return ask(client)
    except (ConnectionResetError, BrokenPipeError):
        return b""


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, ""),
    ],
)
def test_an_ipv6_network_is_one_address(host: str | None, address: str) -> None:
    assert client_address(host) == address


def test_connections_stay_below_the_process_s_open_files(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(counting.resource, "getrlimit", lambda _: [*(raised or [1024])[-1:], 3000])
    monkeypatch.setattr(counting.resource, "setrlimit", lambda _, limits: raised.append(limits[0]))
    # Each may have a second open file, of an answer's connection to an engine.
    assert ConnectionLimits.from_settings(settings).max_connections == 1300
    assert raised == [3000]
