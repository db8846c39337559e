"""A server whose connections have small limits, and raw clients of it."""

import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.api.http import connections as counting
from app.api.http.connections import ConnectionLimits, Connections
from app.api.http.limited_protocol import LimitedProtocol
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
HOLD = b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n"


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


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(counting, "_SWEEP_SECONDS", 0.02)
    servers: list[ServerThread] = []
    clients: list[socket.socket] = []

    def start(app: Any = application, *, loop: str = "auto", **changes: Any) -> Connect:
        limits = ConnectionLimits(**(LIMITS | changes))
        protocol = partial(LimitedProtocol, connections=Connections(limits))
        server = ServerThread(app, http=protocol, ws="none", lifespan="off", loop=loop)
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
