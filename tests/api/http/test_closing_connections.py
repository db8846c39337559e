"""Connections that were closed and whose client has not taken all bytes."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from app.api.http.limited_protocol import LimitedProtocol
from tests.api.http.conftest import read_all

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
