"""Extends a lease from a thread of its own, so that a long upload or a slow step can't lose the work.

Knows nothing of the work: it is given a function that extends the lease.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.errors.work import LeaseLost
from app.core.storage.database import Database
from app.core.storage.outages import describe, is_unavailable

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class LeaseHeartbeat:
    """A context in which a lease is extended; `is_lost` turns true when another worker may own the work.

    `renew` extends the lease in the transaction it is given, and raises LeaseLost; `what` names the work.
    """

    def __init__(
        self, database: Database, what: str, lease_seconds: float, renew: Callable[[Session], None]
    ) -> None:
        self._database = database
        self._what = what
        self._lease_seconds = lease_seconds
        self._renew = renew
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._renewed_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"lease of {what}")

    @property
    def is_lost(self) -> bool:
        """Whether the lease has been taken, or has run out because the database did not answer."""
        return self._lost.is_set() or time.monotonic() - self._renewed_at > self._lease_seconds

    def write(self, change: Callable[[Session], object]) -> None:
        """Run `change` in a transaction, again while the database is away.

        Raises LeaseLost, and any error that would come again, such as that of a value that does not fit.
        """
        while True:
            try:
                with self._database.transaction() as session:
                    change(session)
                return
            except SQLAlchemyError as error:
                if not is_unavailable(error):
                    raise
                if self.is_lost:
                    raise LeaseLost(f"{self._what}: the database was away for too long.") from error
                self._closing.wait(_RETRY_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        # A third of the lease: two heartbeats may be lost.
        while not self._closing.wait(self._lease_seconds / 3):
            try:
                started = time.monotonic()
                with self._database.transaction() as session:
                    self._renew(session)
                self._renewed_at = started
            except LeaseLost:
                self._lost.set()
                return
            except SQLAlchemyError as error:
                if not is_unavailable(error):
                    log.warning("%s: the lease could not be extended: %s", self._what, describe(error))
