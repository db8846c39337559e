"""One attempt at a delivery: an HTTP POST to an address that was checked, and its outcome."""

import asyncio
import contextlib
from functools import cached_property, partial

import httpx
from anyio import to_thread

from app.core import net
from app.core.errors.webhooks import TargetRefused
from app.core.webhooks.deliveries import DeliveryOutcome

ATTEMPT_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
_READ_BYTES = 64 << 10
_READ_SECONDS = 2.0


class Sender:
    """Posts to webhooks. Follows no redirect, uses no proxy, returns nothing of a response but its status."""

    def __init__(self, *, allow_private: bool, attempt_seconds: float = ATTEMPT_SECONDS) -> None:
        self._allow_private = allow_private
        self._attempt_seconds = attempt_seconds

    async def close(self) -> None:
        """Close the HTTP client, if it was used."""
        if "_client" in vars(self):
            await self._client.aclose()

    async def post(self, url: str, headers: dict[str, str], body: str) -> DeliveryOutcome:
        """Send a body once. Failures of the receiver or the network are outcomes, not exceptions."""
        try:
            async with asyncio.timeout(self._attempt_seconds):
                status = await self._post(url, headers, body)
        except TargetRefused as refused:
            return DeliveryOutcome(None, " ".join(filter(None, [refused.message, refused.hint])))
        except (TimeoutError, httpx.TimeoutException):
            return DeliveryOutcome(None, f"No answer within {self._attempt_seconds:g} seconds.")
        except httpx.ConnectError as error:
            return DeliveryOutcome(None, f"No connection: {error}")
        except httpx.HTTPError as error:
            return DeliveryOutcome(None, f"No answer: {error or type(error).__name__}")
        return DeliveryOutcome(status, _complaint(status))

    async def _post(self, url: str, headers: dict[str, str], body: str) -> int:
        target = net.parse_webhook_url(url)
        resolve = partial(net.resolve_allowed_addresses, target, allow_private=self._allow_private)
        addresses = await to_thread.run_sync(resolve, abandon_on_cancel=True)
        for place, address in enumerate(addresses, start=1):
            try:
                return await self._post_to(address, target, headers, body)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if place == len(addresses):
                    raise
        raise AssertionError("there is at least one address")

    async def _post_to(self, address: str, url: httpx.URL, headers: dict[str, str], body: str) -> int:
        """Post to this address: a second look-up of the name could give another, unchecked one."""
        request = self._client.build_request(
            "POST",
            url.copy_with(host=address),
            content=body,
            headers={
                **headers,
                "host": url.netloc.decode("ascii"),
                "content-type": "application/json",
                "user-agent": "Tunesmith-Webhooks/1.0",
                "accept-encoding": "identity",
            },
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        response = await self._client.send(request, stream=True)
        try:
            await _drain(response)
        finally:
            await response.aclose()
        return response.status_code

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """Created at its first use: reading the certificates takes a while."""
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()  # the machine's own certificates, too
        # No keep-alive: requests go to bare addresses, which two names may share.
        limits = httpx.Limits(max_keepalive_connections=0)
        timeout = httpx.Timeout(self._attempt_seconds, connect=_CONNECT_SECONDS)
        return httpx.AsyncClient(verify=context, trust_env=False, limits=limits, timeout=timeout)


async def _drain(response: httpx.Response) -> None:
    """Read a short response to its end, so that the receiver is not cut off; only the status matters."""
    read = 0
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(_READ_SECONDS):
            async for piece in response.aiter_raw():
                read += len(piece)
                if read > _READ_BYTES:
                    return


def _complaint(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"It answered {status}: redirects are not followed."
    return f"It answered {status}."
