"""uvicorn's HTTP protocol with limits that hold before a request reaches the application.

uvicorn's own protocol on httptools has none: a header without an end is joined in memory for ever (and in
quadratic time), and a client that sends nothing holds its connection for ever. Here the bytes that the parser
can't deliver yet are counted, headers and body have to arrive in time (as with Apache's mod_reqtimeout), and
`connections.py` limits the connections of an address.
"""

import asyncio
import fcntl
import termios
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.http.connections import Connections, client_address
from app.api.http.errors import dumps, error_content
from app.core.errors import TunesmithError
from app.core.errors.connections import (
    HeadersTooLarge,
    RequestTooSlow,
    RequestUnreadable,
    TooManyConnections,
)

# How long the client of a closed connection may take nothing of what was written to it.
_FLUSH_SECONDS = 60.0
# A response waits while its client has not taken more than this. A thousand clients that begin to read at
# once get no more than this each before the event loop does anything else.
_MAX_UNSENT_BYTES = 16 << 10


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._counted = connections
        self._limits = connections.limits
        self._has_request = False
        # When the part of a request that is being received has to be there; None: nothing is awaited.
        self._deadline: float | None = None
        self._is_in_body = False
        self._body_bytes = 0
        # The bytes since the parser has last delivered headers, a piece of a body, or the end of a request.
        self._undelivered_bytes = 0
        self._closing_seconds = 0.0
        self._closing_bytes = 0
        # The request that is being answered; uvicorn's `cycle` is the newest, which may wait in the pipeline.
        self._answered: RequestResponseCycle | None = None
        self.address = ""

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered: none has arrived, or the last response was sent."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_new(self) -> bool:
        """Whether the headers of a first request have not arrived."""
        return not self._has_request

    @property
    def has_unread_bytes(self) -> bool:
        """Whether bytes have arrived in the socket's buffer since the event loop has last read it."""
        if self.transport.is_closing():
            return False
        connected = self.transport.get_extra_info("socket")
        return any(fcntl.ioctl(connected.fileno(), termios.FIONREAD, bytes(4)))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, or refuse it with 503."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_MAX_UNSENT_BYTES)
        self.address = client_address(self.client[0] if self.client else None)
        self._deadline = self.loop.time() + self._limits.request_seconds
        if not self._counted.admit(self, self.loop):
            self._refuse_as_too_many()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no more, and end the request that is being answered."""
        self._counted.remove(self)
        super().connection_lost(exc)
        if self._answered and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, in pieces that stay within the limit of what the parser may hold."""
        if self._deadline is None and self.is_idle:
            self._deadline = self.loop.time() + self._limits.request_seconds
        limit = self._limits.max_header_bytes
        offset = 0
        while offset < len(data) and not self.transport.is_closing():
            before = self._undelivered_bytes
            piece = data[offset : offset + limit + 1 - before]
            offset += len(piece)
            self._undelivered_bytes = -1  # a callback that delivers sets it to zero
            super().data_received(piece)
            self._undelivered_bytes = 0 if self._undelivered_bytes == 0 else before + len(piece)
            if self._undelivered_bytes > limit:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    HeadersTooLarge(
                        f"The request's headers are larger than {limit:,} bytes.",
                        hint="The limit is TUNESMITH_MAX_HEADER_BYTES.",
                    ),
                )

    def check(self, now: float, elapsed_seconds: float) -> None:
        """Close the connection where its client is too slow to send a request or to take the last bytes."""
        if self.transport.is_closing():
            self._check_closing(elapsed_seconds)
        elif self._deadline is None:
            return
        elif self._is_in_body and (self.flow.read_paused or self.cycle.waiting_for_100_continue):
            self._deadline += elapsed_seconds  # the client waits for the application
        elif now > self._deadline + self._body_bytes / self._limits.min_body_bytes_per_second:
            part = "body" if self._is_in_body else "headers"
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                RequestTooSlow(
                    f"The request's {part} did not arrive in time.",
                    hint="The limits are TUNESMITH_REQUEST_SECONDS and TUNESMITH_MIN_BODY_BYTES_PER_SECOND.",
                ),
            )

    def _check_closing(self, elapsed_seconds: float) -> None:
        """Abort the closed connection where its client has long taken no byte."""
        unsent = self.transport.get_write_buffer_size()
        is_shrinking = unsent < self._closing_bytes
        self._closing_bytes = unsent
        self._closing_seconds = 0.0 if is_shrinking else self._closing_seconds + elapsed_seconds
        if self._closing_seconds > _FLUSH_SECONDS:
            self.transport.abort()

    def drop(self) -> None:
        """Close the connection, for another one.

        Where its first request may be on the way, that is refused with 503.
        """
        if self.is_new and not self.transport.is_closing():
            self._refuse_as_too_many()
        else:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The parser has delivered a request's headers."""
        self._undelivered_bytes = 0
        self._has_request = self._is_in_body = True
        self._body_bytes = 0
        self._deadline = self.loop.time() + self._limits.request_seconds
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser has delivered a header, or a trailer after a body: trailers are not used."""
        if not self._is_in_body:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """The parser has delivered a piece of a body."""
        self._undelivered_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser has delivered the end of a request."""
        self._undelivered_bytes = 0
        self._is_in_body = False
        self._deadline = None
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the common format of errors."""
        self._refuse(HTTPStatus.BAD_REQUEST, RequestUnreadable(hint="Is it TLS, or a proxy's own protocol?"))

    def _refuse_as_too_many(self) -> None:
        hint = "The limits are TUNESMITH_MAX_CONNECTIONS and TUNESMITH_MAX_CONNECTIONS_PER_ADDRESS."
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, TooManyConnections(hint=hint))

    def _refuse(self, status: HTTPStatus, error: TunesmithError) -> None:
        """Close the connection, with a response unless another one has begun or has to come first."""
        self._deadline = None
        if self.is_idle or not (self.pipeline or self.cycle.response_started):
            body = dumps(error_content(error)).encode()
            head = (
                f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
