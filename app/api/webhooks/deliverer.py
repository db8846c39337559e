"""Sends the deliveries of webhooks while the API runs. Several processes may: each claims its own.

It looks for due deliveries when this process commits one, when an attempt has ended, and once a second for
those that workers wrote and for retries.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.api.webhooks.sender import Sender
from app.core.net import sign_delivery
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.storage.outages import log_unless_away
from app.core.webhooks import deliveries, subscriptions
from app.core.webhooks.deliveries import Claim, DeliveryOutcome

MAX_IN_FLIGHT = 16
MAX_IN_FLIGHT_EACH = 4
POLL_SECONDS = 1.0
_STOP_SECONDS = 3.0
_log = logging.getLogger(__name__)


class Deliverer:
    """The loop of deliveries. Used from one event loop; `wake` may be called from any thread."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        sender: Sender | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._database = database
        self._settings = settings
        self._sender = sender or Sender(allow_private=settings.webhook_allow_private)
        self._poll_seconds = poll_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._in_flight: dict[asyncio.Task[None], str] = {}  # the attempt and its webhook's id
        database.listen(deliveries.TOPIC, self.wake)

    def wake(self) -> None:
        """Look for due deliveries now."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Deliver until cancelled."""
        self._loop = asyncio.get_running_loop()
        is_following = False
        while True:
            try:
                if not is_following:
                    await to_thread.run_sync(self._follow_settings)
                    is_following = True
                await self._start_due()
            except SQLAlchemyError as error:
                # The boundary of the loop: one failure must not end it.
                log_unless_away(_log, "Deliveries of webhooks can't be looked for now", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._woken.wait()
            self._woken.clear()

    async def close(self) -> None:
        """Wait briefly for attempts in flight; one that is cancelled is due again when its lease expires."""
        if self._in_flight:
            _, late = await asyncio.wait(self._in_flight, timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._sender.close()

    async def attempt(self, claim: Claim) -> None:
        """Send one claimed delivery and record its outcome."""
        target = await to_thread.run_sync(self._target, claim)
        if target is None:
            return  # deleted since
        url, secret = target
        headers = sign_delivery(secret, claim.delivery_id, int(time.time()), claim.body)
        outcome = await self._sender.post(url, headers, claim.body)
        await to_thread.run_sync(self._record, claim, outcome)

    async def _start_due(self) -> None:
        while free := MAX_IN_FLIGHT - len(self._in_flight):
            counts = Counter(self._in_flight.values())
            busy = [webhook_id for webhook_id, count in counts.items() if count >= MAX_IN_FLIGHT_EACH]
            claims = await to_thread.run_sync(self._claim, free, busy)
            for claim in claims:
                task = asyncio.create_task(self._attempt_safely(claim))
                self._in_flight[task] = claim.webhook_id
                task.add_done_callback(self._has_ended)
            if not claims:
                return

    async def _attempt_safely(self, claim: Claim) -> None:
        try:
            await self.attempt(claim)
        except Exception as error:
            # The boundary of one attempt: it is due again when its lease expires.
            what = f"Delivery {claim.delivery_id} of webhook {claim.webhook_id} broke off"
            log_unless_away(_log, what, error)

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self._woken.set()

    def _follow_settings(self) -> None:
        with self._database.transaction() as session:
            subscriptions.follow_settings(session, self._settings)

    def _claim(self, limit: int, busy: list[str]) -> list[Claim]:
        with self._database.snapshot() as session:
            if not deliveries.is_any_due(session, busy=busy):
                return []  # without the write lock
        with self._database.transaction() as session:
            return deliveries.claim(session, limit=limit, each=MAX_IN_FLIGHT_EACH, busy=busy)

    def _target(self, claim: Claim) -> tuple[str, str] | None:
        with self._database.snapshot() as session:
            webhook = session.get(tables.WebhookRow, claim.webhook_id)
            return (webhook.url, subscriptions.secret_of(webhook, self._settings)) if webhook else None

    def _record(self, claim: Claim, outcome: DeliveryOutcome) -> None:
        with self._database.transaction() as session:
            is_ours = deliveries.record(session, claim, outcome)
        if not is_ours:
            _log.warning("Delivery %s took longer than its lease, or was asked for again", claim.delivery_id)
        elif outcome.error:
            _log.info("Delivery %s of webhook %s: %s", claim.delivery_id, claim.webhook_id, outcome.error)
