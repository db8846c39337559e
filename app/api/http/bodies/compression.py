"""Unpacks request bodies with `Content-Encoding: gzip`, piece by piece, so that no more than a piece is held.

How much may be unpacked in all, `limit.py` knows.
"""

import zlib
from collections import deque

from starlette.types import Message, Receive, Scope

from app.api.http.errors import BodyRefused
from app.core.errors.bodies import BodyNotGzip, EncodingUnsupported

_PIECE_BYTES = 256 << 10
_GZIP = 16 + zlib.MAX_WBITS
_NAMES = {"gzip", "x-gzip"}


def find_encoding(scope: Scope) -> str | None:
    """`gzip`, or None for a body that is sent as it is. Raises EncodingUnsupported."""
    names = [
        name.strip().lower()
        for header, value in scope["headers"]
        if header == b"content-encoding"
        for name in value.decode("latin-1").split(",")
    ]
    encodings = [name for name in names if name and name != "identity"]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in _NAMES:
        raise EncodingUnsupported(
            f"A body with Content-Encoding {', '.join(encodings)} is not understood.",
            hint="Send it as gzip, or without a Content-Encoding.",
        )
    return "gzip"


def drop_encoding(scope: Scope) -> None:
    """Remove the headers that do not hold for the unpacked body: its encoding and its length."""
    scope["headers"] = [
        header for header in scope["headers"] if header[0] not in (b"content-encoding", b"content-length")
    ]


class Unpacked:
    """Receives a gzip body and returns it unpacked, in messages of at most 256 KiB."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._unpacking = zlib.decompressobj(_GZIP)
        self._packed: deque[bytes] = deque()
        self._is_empty = True
        self._is_all_received = self._is_ended = False

    async def __call__(self) -> Message:
        """The next message. Raises BodyRefused where the body is not gzip."""
        while not self._is_ended:
            if not self._packed and not self._is_all_received:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._packed.append(message.get("body", b""))
                self._is_empty = self._is_empty and not self._packed[0]
                self._is_all_received = not message.get("more_body", False)
            piece = self._unpack_piece()
            self._is_ended = self._is_all_received and not self._packed
            if self._is_ended and not (self._unpacking.eof or self._is_empty):
                raise BodyRefused(BodyNotGzip("The gzip body ends too early."))
            if piece or self._is_ended:
                return {"type": "http.request", "body": piece, "more_body": not self._is_ended}
        return await self._receive()

    def _unpack_piece(self) -> bytes:
        packed = self._packed.popleft()
        if self._unpacking.eof:
            if not packed:
                return b""
            self._unpacking = zlib.decompressobj(_GZIP)  # gzip files may follow each other in one body
        try:
            piece = self._unpacking.decompress(packed, _PIECE_BYTES)
        except zlib.error:
            raise BodyRefused(BodyNotGzip()) from None
        left = self._unpacking.unconsumed_tail or self._unpacking.unused_data
        if left or len(piece) == _PIECE_BYTES:  # all may have been read, and not all written
            self._packed.appendleft(left)
        return piece
