"""URLs and addresses that webhooks may be sent to."""

import socket
from typing import Any

import httpx
import pytest

from app.core.errors.webhooks import TargetRefused
from app.core.net import is_public, parse_webhook_url, resolve_allowed_addresses


def stub_dns(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def answer(_host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.org", "http or https"),
        ("example.org/hooks", "http or https"),
        ("https://", "http or https"),
        ("https://user:password@example.org", "password"),
        ("https://example.org/#part", "#"),
        ("https://example.org:99999", "no port"),
        ("https://[::1", "not a URL"),
        ("http://xn--/", "not a URL"),
        ("http://xn--a/", "not a URL"),
        ("http://xn--zz--a/", "not a URL"),
    ],
)
def test_a_url_that_can_not_be_a_webhook_is_refused_with_the_reason(url: str, said: str) -> None:
    with pytest.raises(TargetRefused, match=said):
        parse_webhook_url(url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::a01:203",
        "2002:a01:203::1",
        "2002:101:101::1",
        "2001:0:101:101::1",
        "::101:101",
        "::ffff:0:101:101",
        "64:ff9b:1::101:101",
        "fec0::1",
        "3fff::1",
        "5f00::1",
        "192.88.99.1",
    ],
)
def test_a_private_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost", "[::1]", "[::ffff:7f00:1]"]
)
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(TargetRefused, match="loopback"):
        resolve_allowed_addresses(httpx.URL(f"http://{host}/"), allow_private=False)


def test_loopback_is_reached_where_that_is_allowed() -> None:
    assert resolve_allowed_addresses(httpx.URL("http://127.0.0.1:1/"), allow_private=True) == ["127.0.0.1"]


def test_a_name_with_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_dns(monkeypatch, "10.0.0.1")
    with pytest.raises(TargetRefused, match="private"):
        resolve_allowed_addresses(httpx.URL("https://inside.example"), allow_private=False)


def test_only_the_public_addresses_of_a_name_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_dns(monkeypatch, "10.0.0.1", "1.1.1.1")
    assert resolve_allowed_addresses(httpx.URL("https://both.example"), allow_private=False) == ["1.1.1.1"]


def test_a_name_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(TargetRefused, match="no address"):
        resolve_allowed_addresses(httpx.URL("https://nowhere.example"), allow_private=False)
