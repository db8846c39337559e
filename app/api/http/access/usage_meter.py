"""Adds up what keys use of models in this process, and writes the sums to the database every second.

What a process that is killed has not written, at most the last second, is lost.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from anyio import to_thread

from app.core.keys import usage
from app.core.keys.usage import Amounts, UsageKey
from app.core.storage.database import Database
from app.core.storage.outages import log_unless_away

WRITE_SECONDS = 1.0
_READ_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Total:
    """The tokens of a key on a day as the database had them, when it was read."""

    tokens: int
    day: date
    read_at: float


class UsageMeter:
    """What was used since the last write, and what each key with a limit has used today."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._clock = clock
        self._now = now
        self._unwritten: dict[UsageKey, Amounts] = {}
        self._being_written: dict[UsageKey, Amounts] = {}
        # A total that was read before a write has ended is not stored after it.
        self._turn = asyncio.Lock()
        self._totals: dict[str, _Total] = {}

    def add(self, key_id: str | None, model: str, amounts: Amounts) -> None:
        """Count what a request has used."""
        key = UsageKey(key_id or "", self._now().date(), model)
        self._unwritten.setdefault(key, Amounts()).add(amounts)

    async def count_today(self, key_id: str) -> tuple[int, float]:
        """Returns the tokens of a key today, and how many seconds today still lasts.

        What other processes have counted may be missing for two seconds.
        """
        now = self._now()
        total = self._totals.get(key_id)
        if total is None or total.day != now.date() or total.read_at + _READ_SECONDS <= self._clock():
            async with self._turn:
                total = await to_thread.run_sync(self._read, key_id, now.date())
                self._totals[key_id] = total
        own = [
            amounts.prompt_tokens + amounts.completion_tokens
            for amounts_by_key in (self._unwritten, self._being_written)
            for key, amounts in amounts_by_key.items()
            if (key.key_id, key.day) == (key_id, now.date())
        ]
        tomorrow = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
        return total.tokens + sum(own), (tomorrow - now).total_seconds()

    async def run(self) -> None:
        """Write every second, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write what was added up. Where the database is away it is written later."""
        async with self._turn:
            self._being_written, self._unwritten = self._unwritten, {}
            try:
                if self._being_written:
                    await to_thread.run_sync(self._write, self._being_written)
            except Exception as error:
                for key, amounts in self._being_written.items():
                    self._unwritten.setdefault(key, Amounts()).add(amounts)
                log_unless_away(_log, "What keys have used can't be written now", error)
            for key in self._being_written:
                self._totals.pop(key.key_id, None)
            self._being_written = {}

    def _write(self, taken: dict[UsageKey, Amounts]) -> None:
        with self._database.transaction() as session:
            usage.add(session, taken)

    def _read(self, key_id: str, day: date) -> _Total:
        read_at = self._clock()
        with self._database.snapshot() as session:
            return _Total(usage.count_tokens(session, key_id, day), day, read_at)
