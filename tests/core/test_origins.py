import pytest
from pydantic import ValidationError

from app.core.origins import parse_host, parse_origin
from app.core.settings import Settings


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Box.example/", "https://box.example"),
        ("https://box.example:443", "https://box.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_written_as_browsers_send_it(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "https://*.example",
        "box.example",
        "localhost:3000",
        "null",
        "https://",
        "https://box.example/page",
        "https://me@box.example",
        "https://box.example:99999",
        "https://box example",
        '["https://box.example"]',
        "https://bücher.example",
        "https://[::1",
        "a;https://b",
    ],
)
def test_what_is_no_origin_is_an_error_of_the_setting(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNESMITH_ALLOWED_ORIGINS", f"https://fine.example, {text}")
    with pytest.raises(ValidationError, match="allowed_origins"):
        Settings()


@pytest.mark.parametrize(
    ("text", "host"),
    [("Box.LAN", "box.lan"), ("api", "api"), ("[::1]", "::1"), ("::1", "::1"), ("10.0.0.1", "10.0.0.1")],
)
def test_a_host_is_its_name_or_its_address(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["http://box", "box:8000", "*", "*.box.example", '["box"]', "a b", "box/"])
def test_what_is_no_host_is_an_error_of_the_setting(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNESMITH_ALLOWED_HOSTS", text)
    with pytest.raises(ValidationError, match="allowed_hosts"):
        Settings()
