"""A client of the API over HTTP: requests, pages, streams. Errors become `CommandFailed`. Prints nothing."""

import ipaddress
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from app.cli.connection.profiles import Connection
from app.cli.failures import CommandFailed, ExitCode, LineProblem, Unreachable

Params = Mapping[str, str | int | float | bool | None]

_TIMEOUT = httpx.Timeout(60, connect=5)
_GENERATION_TIMEOUT = httpx.Timeout(900, connect=5)
# A stream without data for so long is dead: the API sends a comment every 15 s.
_STREAM_TIMEOUT = httpx.Timeout(50, connect=5)
_TRIES = 3
_PAGE = 100
_EXIT_CODES = {
    401: ExitCode.UNAUTHORIZED,
    403: ExitCode.UNAUTHORIZED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    412: ExitCode.CONFLICT,
    429: ExitCode.BUSY,
    503: ExitCode.BUSY,
}


class Client:
    """A client of one API. Its methods return the API's own JSON."""

    def __init__(self, connection: Connection, *, timeout: httpx.Timeout | float = _TIMEOUT) -> None:
        self.url = connection.url
        self._http = httpx.Client(
            base_url=connection.url,
            headers=_headers(connection.api_key),
            timeout=timeout,
            # A proxy of the environment is for other machines.
            trust_env=not _is_local(connection.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def get(self, path: str, params: Params | None = None) -> Any:
        """The JSON at a path."""
        return self._request("GET", path, params=_given(params)).json()

    def get_text(self, path: str, params: Params | None = None) -> str:
        """The text at a path."""
        return self._request("GET", path, params=_given(params)).text

    def list(self, path: str, *, limit: int | None = None, params: Params | None = None) -> list[Any]:
        """The items of a list that comes in pages: the first `limit`, or all."""
        return list(self.iterate(path, limit=limit, params=params))

    def iterate(self, path: str, *, limit: int | None = None, params: Params | None = None) -> Iterator[Any]:
        """The items of a list that comes in pages, fetched a page at a time: the first `limit`, or all."""
        left = limit
        after: str | int | None = None
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            page = self.get(path, {**(params or {}), "limit": size, "after": after})
            yield from page["data"]
            after = page["next"]
            left = None if left is None else left - len(page["data"])
            if after is None:
                return

    def post(self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """Send a POST that may be repeated: a change of a job's state, a preflight, a generation."""
        timeout = _GENERATION_TIMEOUT if body is not None else _TIMEOUT
        return self._request("POST", path, json=body, headers=headers, timeout=timeout).json()

    def put(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> Any:
        """Set what is at a path."""
        return self._request("PUT", path, json=body, headers=headers).json()

    def create(self, path: str, body: object) -> Any:
        """Create one thing. Where the connection breaks, try again with the same idempotency key."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        for _ in range(_TRIES - 1):
            try:
                return self._send("POST", path, json=body, headers=headers).json()
            except httpx.ConnectError:
                break  # no server listens at the address
            except httpx.TransportError:
                continue
        return self._request("POST", path, json=body, headers=headers).json()

    def upload(self, path: str, *, files: Any, fields: dict[str, str], key: str | None = None) -> Any:
        """Upload a file. `key` is the idempotency key: an upload with the same key is made once."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._request("POST", path, files=files, data=fields, headers=headers).json()

    def patch(self, path: str, body: object) -> Any:
        """Change what is at a path."""
        return self._request("PATCH", path, json=body).json()

    def delete(self, path: str) -> None:
        """Delete what is at a path."""
        self._request("DELETE", path)

    def delete_with_answer(self, path: str, params: Params | None = None) -> Any:
        """Delete what a path names. Returns what the API says of it."""
        return self._request("DELETE", path, params=_given(params)).json()

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """A response that is read while it arrives. Raises httpx.TransportError where it breaks off."""
        timeout = _GENERATION_TIMEOUT if body is not None else _STREAM_TIMEOUT
        with self._http.stream(
            method, path, json=body, params=_given(params), headers=headers, timeout=timeout
        ) as response:
            if response.is_error:
                response.read()
            yield _checked(response)

    def unreachable(self, error: httpx.TransportError) -> Unreachable:
        """A transport error as the failure of a command."""
        return Unreachable(self.url, _reason(error))

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._send(method, path, **options)
        except httpx.TransportError as error:
            raise self.unreachable(error) from None

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return _checked(self._http.request(method, path, **options))


def segment(name: str) -> str:
    """A name, quoted as one segment of a URL's path."""
    return quote(name, safe="")


def failure_from(error: Mapping[str, Any], status: int = 500) -> CommandFailed:
    """An error of the API, as the failure of a command."""
    return CommandFailed(
        str(error.get("message")),
        exit_code=_EXIT_CODES.get(status, ExitCode.ERROR),
        code=str(error.get("code")),
        hint=error.get("hint"),
        param=error.get("param"),
        problems=[LineProblem(one["line"], one["message"]) for one in error.get("problems") or []],
        sample=error.get("sample"),
    )


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        error = response.json()["error"]
        error["message"]
    except (ValueError, KeyError, TypeError):
        raise CommandFailed(
            f"{response.url} answered {response.status_code}, and not as Tunesmith does.",
            exit_code=_EXIT_CODES.get(response.status_code, ExitCode.ERROR),
            code="not_tunesmith",
            hint="Is this the address of a Tunesmith API? --url, TUNESMITH_URL or `tunesmith login` set it.",
        ) from None
    failure = failure_from(error, response.status_code)
    if failure.exit_code is ExitCode.UNAUTHORIZED:
        failure.hint = "Give a key that is in force: --api-key, TUNESMITH_API_KEY or `tunesmith login`. " + (
            "On the API's machine `tunesmith keys create NAME` makes one."
        )
    raise failure


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _given(params: Params | None) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "it took too long"
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error) or type(error).__name__).rstrip(".")
