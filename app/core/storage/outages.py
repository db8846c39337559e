"""Recognizes outages of the database, and logs each of them in a few lines, not in one for every caller."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
    TimeoutError as PoolTimeout,
)

_REPEAT_SECONDS = 60.0
# PostgreSQL's classes of errors that a statement meets in itself; its driver calls them operational, too.
_PERMANENT_CLASSES = ("54",)  # a limit of the program is exceeded
# The server became a standby: the driver calls it an internal error.
_READ_ONLY = "25006"

log = logging.getLogger(__name__)


class OutageLog:
    """Logs an outage when it begins, once a minute while it lasts, and when it has ended. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._logged_at = 0.0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note whether the work in the context meets an outage, and pass its error on."""
        try:
            yield
        except SQLAlchemyError as error:
            if is_unavailable(error):
                self._note(error)
            raise
        if self._began_at is not None:
            self._end()

    def _note(self, error: SQLAlchemyError) -> None:
        with self._lock:
            now = self._clock()
            is_first = self._began_at is None
            if is_first or now - self._logged_at >= _REPEAT_SECONDS:
                self._logged_at = now
                log.warning("The database does not answer: %s", describe(error))
            if is_first:
                self._began_at = now

    def _end(self) -> None:
        with self._lock:
            if self._began_at is not None:
                log.warning("The database answers again, after %.0f s", self._clock() - self._began_at)
                self._began_at = None


def is_unavailable(error: BaseException) -> bool:
    """Whether an error says that the database can't be reached, is busy or full: the same may work later.

    Any other error of the database is about the statement or its values, and would come again.
    """
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None) or ""
    if error.connection_invalidated or state == _READ_ONLY:
        return True
    return isinstance(error, OperationalError | InterfaceError) and state[:2] not in _PERMANENT_CLASSES


def log_unless_away(logger: logging.Logger, what: str, error: Exception) -> None:
    """Log an error with its traceback, unless it is an outage, which the database logs itself."""
    if not is_unavailable(error):
        logger.error(what, exc_info=error)


def describe(error: SQLAlchemyError) -> str:
    """Returns the database's own words, in one line, without the statement and its values."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
