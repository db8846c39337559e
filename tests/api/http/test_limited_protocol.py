import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.api.http import connections as counting
from app.api.http.connections import ConnectionLimits, Connections, client_address
from app.api.http.limited_protocol import LimitedProtocol
from app.core.settings import Settings
from tests.fakes import ServerThread

LIMITS: dict[str, Any] = {
    "max_connections": 8,
    "max_connections_per_address": 100,
    "max_header_bytes": 4096,
    "request_seconds": 100.0,
    "min_body_bytes_per_second": 1000,
}
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"

Connect = Callable[[], socket.socket]
Start = Callable[..., Connect]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds to /hold with its headers alone until the client is gone, else with the body's length."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/hold":
        await send({"type": "http.response.body", "body": b"held", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    length = 0
    while (message := await receive()).get("more_body"):
        length += len(message["body"])
    length += len(message.get("body", b""))
    await send({"type": "http.response.body", "body": f"{length} bytes".encode()})


async def reading_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body before it responds."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"read"})


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(counting, "_SWEEP_SECONDS", 0.02)
    servers: list[ServerThread] = []
    clients: list[socket.socket] = []

    def start(app: Any = application, **changes: Any) -> Connect:
        limits = ConnectionLimits(**(LIMITS | changes))
        protocol = partial(LimitedProtocol, connections=Connections(limits))
        server = ServerThread(app, http=protocol, ws="none", lifespan="off")
        servers.append(server)

        def connect() -> socket.socket:
            client = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)
            clients.append(client)
            return client

        return connect

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.stop()


def read_all(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    found = b""
    try:
        while piece := client.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


def ask(client: socket.socket, request: bytes = GET) -> bytes:
    """The first bytes of the response."""
    client.sendall(request)
    return client.recv(1 << 16)


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


def test_what_is_not_http_is_400_in_the_common_format(start: Start) -> None:
    client = start()()
    client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert b'"code":"request_unreadable"' in read_all(client)


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


HOLD = b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n"


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


Closing = tuple[asyncio.Runner, LimitedProtocol, socket.socket]


@pytest.fixture
def closing() -> Iterator[Closing]:
    """A closed connection with four megabytes that its client has not taken."""
    server, client = socket.socketpair()

    async def close() -> LimitedProtocol:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, server)
        protocol = LimitedProtocol.__new__(LimitedProtocol)
        protocol.transport = transport
        protocol._closing_seconds, protocol._closing_bytes = 0.0, 0
        transport.write(b"x" * (4 << 20))
        transport.close()
        return protocol

    with client, asyncio.Runner() as runner:
        protocol = runner.run(close())
        yield runner, protocol, client
        if protocol.transport.get_write_buffer_size():
            protocol.transport.abort()
        runner.run(asyncio.sleep(0))


def test_a_closed_connection_whose_client_takes_no_bytes_is_aborted(closing: Closing) -> None:
    _, protocol, _ = closing
    protocol.check(0.0, 59.0)
    assert protocol.transport.get_write_buffer_size()
    protocol.check(0.0, 2.0)
    assert not protocol.transport.get_write_buffer_size()


def test_a_closed_connection_whose_client_takes_bytes_slowly_delivers_them_all(closing: Closing) -> None:
    runner, protocol, client = closing
    transport = protocol.transport
    protocol.check(0.0, 0.0)
    taken = 0
    while before := transport.get_write_buffer_size():
        while transport.get_write_buffer_size() == before:
            taken += len(client.recv(1 << 18))
            runner.run(asyncio.sleep(0))
        protocol.check(0.0, 59.0)
    runner.run(asyncio.sleep(0))  # the socket is closed
    assert taken + len(read_all(client)) == 4 << 20
