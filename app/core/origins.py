"""Origins of pages and names of hosts, as settings hold them. Pure."""

import ipaddress
import re
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?")


def parse_origin(text: str) -> str:
    """An origin as browsers send it: lower case, without the scheme's default port. Raises ValueError.

    Any scheme may be named: an app's or an extension's pages have one of their own (`app://obsidian.md`).
    """
    if "*" in text:
        raise ValueError(
            f"{text!r} stands for any page in a browser; name each origin, as https://box.example"
        )
    scheme, separator, rest = text.lower().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ValueError(
            f"{text!r} is not an origin; write it as https://box.example or http://localhost:3000"
        )
    address = rest.removesuffix("/")
    if any(mark in address for mark in "/?#@"):
        raise ValueError(f"{text!r} is more than an origin; end it after the host or the port")
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not an origin: {error}") from None
    shown = f"[{host}]" if _is_ipv6(host) else _parse_name(host, text)
    return f"{scheme}://{shown}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else f":{port}")


def parse_host(text: str) -> str:
    """A host's name in lower case, or its address without brackets. Raises ValueError."""
    host = text.lower()
    bare = host.removeprefix("[").removesuffix("]")
    return bare if _is_ipv6(bare) else _parse_name(host, text)


def _parse_name(host: str, text: str) -> str:
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{text!r} has no host name that can be read; write the name alone, as box.example")
    return host


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
