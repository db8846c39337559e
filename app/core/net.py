"""URLs and network addresses that webhooks may be sent to, and the signatures of their deliveries.

A host name is checked by the addresses that it resolves to, when a webhook is registered and again at each
attempt. The attempt connects to the address that was checked, so a name that resolves to a private address
later (DNS rebinding) is refused. Secrets and signatures follow standardwebhooks.com, which OpenAI's clients
verify.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import socket

import httpx

from app.core.errors.webhooks import TargetRefused

MAX_URL = 2048
_PREFIX = "whsec_"
_SECRET_BYTES = 32
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Networks that lead to other addresses or to this site, whatever Python's version says of them.
_NEVER_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        "::/96",  # IPv4-compatible addresses, with the loopback (RFC 4291)
        "::ffff:0:0:0/96",  # IPv4-translated addresses (RFC 2765)
        "64:ff9b:1::/48",  # NAT64 of a site (RFC 8215)
        "2001::/32",  # Teredo (RFC 4380)
        "2002::/16",  # 6to4 (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
        "5f00::/16",  # segment routing (RFC 9602)
        "fec0::/10",  # site-local addresses (RFC 3879)
        "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
    )
]
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_webhook_url(text: str) -> httpx.URL:
    """Parse a webhook's URL. Raises TargetRefused where a webhook can't be sent to such a URL."""
    try:
        url = httpx.URL(text)
        host = url.host  # decodes it: a malformed international name shows here
    except (httpx.InvalidURL, ValueError):
        raise TargetRefused("This is not a URL.", hint="For example https://example.org/hooks.") from None
    if url.scheme not in _PORTS or not host:
        raise TargetRefused("A webhook needs an http or https URL.", hint="Prefer https.")
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise TargetRefused(f"There is no port {url.port}.")
    if url.userinfo:
        raise TargetRefused("A webhook's URL can't hold a password.", hint="Check the signature instead.")
    if url.fragment:
        raise TargetRefused("A webhook's URL can't have a part after `#`: it would not be sent.")
    return url


def resolve_allowed_addresses(url: httpx.URL, *, allow_private: bool) -> list[str]:
    """Returns the IP addresses of a URL's host that may be connected to, in the system's order.

    Waits for DNS. Without `allow_private` these are the public ones. Raises TargetRefused where none is left.
    """
    host = url.raw_host.decode("ascii")
    try:
        found = socket.getaddrinfo(host, url.port or _PORTS[url.scheme], type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise TargetRefused(f"The host {host} has no address.", hint="Look at its name.") from None
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    allowed = [address for address in addresses if allow_private or is_public(address)]
    if not allowed:
        raise TargetRefused(
            f"The host {host} is on a loopback, private or link-local network.",
            hint="TUNESMITH_WEBHOOK_ALLOW_PRIVATE=true allows it.",
        )
    return allowed


def is_public(address: str) -> bool:
    """Whether an IP address is a public unicast address, also where an IPv6 address wraps an IPv4 one."""
    parsed = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if any(parsed in network for network in _NEVER_PUBLIC):
        return False
    return parsed.is_global and not parsed.is_multicast


def _unwrapped(address: _Address) -> _Address:
    """Returns the IPv4 address that an IPv6 address wraps (NAT64, mapped), or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


def new_webhook_secret() -> str:
    """Returns a fresh signing secret: 256 random bits as `whsec_<base64>`."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign_delivery(secret: str, delivery_id: str, timestamp: int, body: str) -> dict[str, str]:
    """Returns the three signature headers of a delivery; `timestamp`: this attempt's, in Unix seconds."""
    signed = f"{delivery_id}.{timestamp}.{body}".encode()
    signature = base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def is_webhook_secret(text: str) -> bool:
    """Whether a text can be a signing secret: `whsec_` and base64, or any text without that prefix."""
    try:
        return bool(_key(text))
    except (binascii.Error, ValueError):
        return False


def _key(secret: str) -> bytes:
    if secret.startswith(_PREFIX):
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    return secret.encode()
