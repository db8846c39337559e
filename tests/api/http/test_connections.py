"""How many connections the server has at once, and which of them it closes for others."""

import socket

import pytest

from app.api.http import connections as counting
from app.api.http.connections import ConnectionLimits, client_address
from app.core.settings import Settings
from tests.api.http.conftest import Start, ask, read_all


def test_silent_connections_make_place_for_requests(start: Start) -> None:
    connect = start()
    silent = [connect() for _ in range(30)]
    assert all(ask(connect()).startswith(b"HTTP/1.1 200") for _ in range(30))
    assert [read_all(client) for client in silent[:22]] == [b""] * 22


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
    assert ConnectionLimits.from_settings(settings).max_connections == 2600
    assert raised == [3000]
