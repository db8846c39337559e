"""The limits of keys that hold for each request: requests a minute, and tokens a day.

A process takes permits for requests in blocks (app/core/keys/windows.py), and reads at most once a second how
many tokens a key has used. See docs/decisions/0058.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from anyio import to_thread

from app.api.http.access.usage_meter import UsageMeter
from app.api.http.errors import rate_headers
from app.core.errors.access import RateLimited, TokensSpent
from app.core.keys import windows
from app.core.keys.records import Caller
from app.core.keys.windows import Permits
from app.core.storage.database import Database

RateHeaders = dict[str, str]


@dataclass
class _Window:
    """What this process has of a key's present minute: permits of its own, and what was left for all."""

    permits: int
    left: int
    ends_at: float


class RequestLimits:
    """Counts the requests of keys with limits, in one process of several. Used from one event loop."""

    def __init__(
        self, database: Database, meter: UsageMeter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._meter = meter
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def admit(self, caller: Caller, *, asks_model: bool) -> RateHeaders:
        """Count a request. Returns headers of the response, as OpenAI has them.

        Raises RateLimited, and TokensSpent for a request that asks a model.
        """
        if caller.key_id is None:
            return {}
        headers: RateHeaders = {}
        if caller.limits.requests_per_minute is not None:
            headers |= await self._count(caller, caller.key_id, caller.limits.requests_per_minute)
        if asks_model and caller.limits.tokens_per_day is not None:
            headers |= await self._check_tokens(caller, caller.key_id, caller.limits.tokens_per_day)
        return headers

    async def _count(self, caller: Caller, key_id: str, limit: int) -> RateHeaders:
        window = self._windows.get(key_id)
        if window is None or window.ends_at <= self._clock() or not window.permits:
            window = await self._renew(key_id, limit)
        seconds = window.ends_at - self._clock()
        if not window.permits:
            seconds_left = max(1, round(seconds))
            raise RateLimited(
                f"The key {caller.name!r} has sent its {limit} requests of this minute.",
                hint=f"Its limit requests_per_minute is {limit}; the next minute begins in {seconds_left} s.",
                limit=limit,
                retry_after_seconds=seconds_left,
            )
        window.permits -= 1
        return rate_headers("requests", limit, window.permits + window.left, seconds)

    async def _renew(self, key_id: str, limit: int) -> _Window:
        async with self._locks.setdefault(key_id, asyncio.Lock()):
            # Another request may have renewed it while this one waited, or found that nothing is left.
            window = self._windows.get(key_id)
            now = self._clock()
            if window is not None and window.ends_at > now and (window.permits or not window.left):
                return window
            found = await to_thread.run_sync(self._take, key_id, limit)
            self._windows[key_id] = window = _Window(found.count, found.left, now + found.seconds)
            return window

    def _take(self, key_id: str, limit: int) -> Permits:
        with self._database.transaction() as session:
            return windows.take(session, key_id, limit)

    async def _check_tokens(self, caller: Caller, key_id: str, limit: int) -> RateHeaders:
        used, seconds = await self._meter.count_today(key_id)
        if used >= limit:
            raise TokensSpent(
                f"The key {caller.name!r} has used {used} tokens today, of {limit} a day.",
                hint=f"Its limit tokens_per_day is {limit}. The day ends at midnight UTC; "
                "GET /usage says what they were used for.",
                limit=limit,
                retry_after_seconds=max(1, round(seconds)),
            )
        return rate_headers("tokens", limit, limit - used, seconds)
