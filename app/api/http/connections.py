"""Counts the open connections of a server, and closes the silent ones where there would be too many.

Knows connections by the properties of `ClientConnection`, and no HTTP: `limited_protocol.py` has that.
"""

import asyncio
import contextlib
import ipaddress
import resource
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from app.core.settings import Settings

_SWEEP_SECONDS = 1.0
# Descriptors for the database's pool, connections to engines, files and the sockets that listen.
_OTHER_DESCRIPTORS = 400
_MIN_CONNECTIONS = 16


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of a server's connections; the settings of the same names describe them."""

    max_connections: int
    max_connections_per_address: int
    max_header_bytes: int
    request_seconds: float
    min_body_bytes_per_second: int

    @classmethod
    def from_settings(cls, settings: Settings) -> "ConnectionLimits":
        """The limits, no more connections than this process may have descriptors for.

        Raises the process's soft limit of descriptors towards its hard limit where that is needed.
        """
        limits = cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})
        # An answer of an engine takes a second descriptor.
        allowed = _raise_descriptor_limit(2 * limits.max_connections + _OTHER_DESCRIPTORS)
        most = max(_MIN_CONNECTIONS, (allowed - _OTHER_DESCRIPTORS) // 2)
        return replace(limits, max_connections=min(limits.max_connections, most))

    @property
    def backlog(self) -> int:
        """How many connections may wait to be accepted, and so are accepted in one iteration of the loop.

        A quarter of those that may be open: few are refused before the requests of the others are read.
        """
        return max(_MIN_CONNECTIONS, min(self.max_connections, self.max_connections_per_address) // 4)


class ClientConnection(Protocol):
    """What `Connections` must know of a client's connection."""

    @property
    def address(self) -> str:
        """The client's address, as `client_address` returns it."""

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""

    @property
    def is_new(self) -> bool:
        """Whether it has not sent the headers of a request yet."""

    @property
    def has_unread_bytes(self) -> bool:
        """Whether bytes have arrived that were not read yet: perhaps a request."""

    def drop(self) -> None:
        """Close it."""

    def check(self, now: float, elapsed_seconds: float) -> None:
        """Close it where its client is too slow; `elapsed_seconds`: the time since the last check."""


class Connections:
    """The open connections of a server, in the order in which they were made."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        # Dictionaries, because sets have no order.
        self._open: dict[ClientConnection, None] = {}
        self._by_address: defaultdict[str, dict[ClientConnection, None]] = defaultdict(dict)
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: ClientConnection, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a new connection is within the limits; then it is counted.

        Where there are too many, an idle one is closed: the oldest one that has sent no request, else the
        oldest one between two requests. One whose next request has arrived is not idle, also where the event
        loop has not read it: the kernel would reset that connection, without a response.
        """
        of_address = self._by_address[connection.address]
        for open_now, most in (
            (of_address, self.limits.max_connections_per_address),
            (self._open, self.limits.max_connections),
        ):
            if len(open_now) >= most and not self._drop_idle(open_now):
                return False
        self._open[connection] = self._by_address[connection.address][connection] = None
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep, loop, loop.time())
        return True

    def remove(self, connection: ClientConnection) -> None:
        """Count a connection no more; one that was never counted changes nothing."""
        self._open.pop(connection, None)
        of_address = self._by_address.get(connection.address, {})
        of_address.pop(connection, None)
        if not of_address:
            self._by_address.pop(connection.address, None)

    def _drop_idle(self, candidates: Iterable[ClientConnection]) -> bool:
        idle = (one for one in candidates if one.is_idle and not one.has_unread_bytes)
        new = (one for one in candidates if one.is_new and one.is_idle and not one.has_unread_bytes)
        found = next(new, None) or next(idle, None)
        if found is None:
            return False
        self.remove(found)
        found.drop()
        return True

    def _sweep(self, loop: asyncio.AbstractEventLoop, last: float) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.check(now, now - last)
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep, loop, now) if self._open else None


def client_address(host: str | None) -> str:
    """The address by which connections of a client are counted: for IPv6 its network of 64 bits.

    A host on IPv6 usually has a whole such network. `None`, a Unix socket, is one address.
    """
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _raise_descriptor_limit(wanted: int) -> int:
    """Raise the soft limit of open files of this process to `wanted`, if it may. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        # macOS refuses more than kern.maxfilesperproc.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else soft
