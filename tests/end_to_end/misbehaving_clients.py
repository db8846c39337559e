"""Misbehaving clients over plain sockets: they disconnect, send half requests or garbage, or read slowly."""

import asyncio
import json
import random
import socket
import struct
from typing import Any

SLOW_READER_TOKENS = 100
ENDLESS_TOKENS = 7_000
_GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nContent-Length: many\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nnot a chunk\r\n",
    b"\r\n" * 1000,
]


class MisbehavingClients:
    """A burst of clients against one port."""

    def __init__(self, port: int, bodies: list[dict[str, Any]], seed: int) -> None:
        self._port = port
        self._bodies = bodies
        self._random = random.Random(seed)
        self._others_are_gone = asyncio.Event()
        self.slow_answers: list[bytes] = []

    async def run(self, count: int) -> None:
        """Run `count` clients at once; one in eight reads nothing until all the others have disconnected."""
        slow = [asyncio.create_task(self._read_late()) for _ in range(count // 8)]
        kinds = [self._leave_at_once, self._leave_in_mid_answer, self._send_half, self._send_garbage]
        misbehaving = [kinds[index % len(kinds)]() for index in range(count - len(slow))]
        await asyncio.gather(*misbehaving)
        self._others_are_gone.set()
        await asyncio.gather(*slow)

    async def _leave_at_once(self) -> None:
        _, writer = await self._ask(**self._random.choice([{"max_tokens": ENDLESS_TOKENS}, {"n": 4}]))
        await self._reset(writer)

    async def _leave_in_mid_answer(self) -> None:
        reader, writer = await self._ask(max_tokens=ENDLESS_TOKENS)
        await reader.read(self._random.choice([1, 200, 2000]))
        await self._reset(writer)

    async def _send_half(self) -> None:
        request = self._request()
        _, writer = await self._send(request[: self._random.randrange(1, len(request))])
        await self._reset(writer)

    async def _send_garbage(self) -> None:
        reader, writer = await self._send(self._random.choice([*_GARBAGE, self._malformed()]))
        writer.write_eof()
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""  # the server may close the connection before it has read everything
        finally:
            writer.close()
        assert not answer or 400 <= int(answer.split()[1]) < 500, answer

    async def _read_late(self) -> None:
        reader, writer = await self._ask(
            max_tokens=SLOW_READER_TOKENS, stream_options={"include_usage": True}
        )
        await self._others_are_gone.wait()
        self.slow_answers.append(await reader.read())
        writer.close()

    async def _ask(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._send(self._request(**options))

    async def _send(self, content: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # Small buffers fill at once when the reader is slow.
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2048)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.write(content)
        return reader, writer

    def _request(self, **options: Any) -> bytes:
        body = json.dumps({**self._random.choice(self._bodies), "stream": True, **options}).encode()
        return _with_head(body)

    def _malformed(self) -> bytes:
        return _with_head(self._random.choice([b"{", b"\xff\xfe", b'{"model": 3}', b'["prompt"]', b"{}" * 9]))

    async def _reset(self, writer: asyncio.StreamWriter) -> None:
        """Close the connection with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()


def _with_head(body: bytes) -> bytes:
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
