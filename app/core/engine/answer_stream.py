"""One POST whose response is read while it arrives, on a connection of its own, parsed by httptools.

All lines that have arrived are returned at once, so that a slow reader catches up in large steps; this
carries several times the tokens of a general HTTP client. Knows nothing of what the lines mean.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import httptools

# An engine that loads a model is silent for minutes, so reading has no limit; TCP notices a dead machine.
KEEPALIVE: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), seconds)
        for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
CONNECT_SECONDS = 5.0
_READ_BYTES = 1 << 16


class AnswerStream:
    """The response to one request. Must be closed; closing it early cancels the request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = httptools.HttpResponseParser(self)
        self._arrived: list[bytes] = []
        self._is_complete = False

    @property
    def status(self) -> int:
        """The response's status; 0 until it has arrived."""
        return int(self._parser.get_status_code())

    async def lines(self) -> AsyncIterator[list[bytes]]:
        """The lines that have arrived, at least one each time.

        Raises OSError where the connection breaks, HttpParserError where the response is not HTTP.
        """
        rest = b""
        while not self._is_complete:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise ConnectionResetError("The connection was closed in the middle of the answer.")
            self._parser.feed_data(data)
            *lines, rest = (rest + b"".join(self._arrived)).split(b"\n")
            self._arrived.clear()
            if lines:
                yield lines
        if rest:
            yield [rest]

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    def abort(self) -> None:
        """End the connection at once, also where the other side reads nothing; `lines` raises OSError."""
        self._writer.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Called by the parser with a part of the body."""
        self._arrived.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of the response."""
        self._is_complete = True


async def post(url: str, content: bytes, headers: Mapping[str, str]) -> AnswerStream:
    """Send a request. Raises OSError and TimeoutError when there is no connection."""
    parts = urlsplit(url)
    is_secure = parts.scheme == "https"
    connecting = asyncio.open_connection(
        parts.hostname,
        parts.port or (443 if is_secure else 80),
        ssl=ssl.create_default_context() if is_secure else None,
    )
    reader, writer = await asyncio.wait_for(connecting, CONNECT_SECONDS)
    for option in KEEPALIVE:
        writer.get_extra_info("socket").setsockopt(*option)
    head = {"host": parts.netloc.rpartition("@")[2], "content-length": len(content), **headers}
    lines = [f"POST {parts.path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + content)
    return AnswerStream(reader, writer)
