"""Commits small changes of several threads in one transaction: a commit costs more than a change does.

A thread that brings a change while another thread commits waits for the lock, and then commits every change
that arrived meanwhile. A change is in the database when `run` returns. SQLite's own wait for the write lock
is not fair: a thread could wait there for seconds while others pass it.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from app.core.storage.database import Database

Result = TypeVar("Result")
_MAX_CHANGES = 100


class GroupCommit:
    """Collects the changes of one process and commits them in groups."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Change] = deque()
        self._turn = threading.Lock()

    def run(self, change: Callable[[Session], Result]) -> Result:
        """Run a change in a transaction, perhaps with others. Returns what the change does, or raises it.

        A change may run twice: where one of a group raises, each is run again in a transaction of its own.
        """
        mine = _Change(change)
        self._waiting.append(mine)
        while not mine.is_done:
            with self._turn:
                if not mine.is_done:
                    count = min(len(self._waiting), _MAX_CHANGES)
                    self._commit([self._waiting.popleft() for _ in range(count)])
        if mine.error is not None:
            raise mine.error
        result: Result = mine.result
        return result

    def _commit(self, changes: list["_Change"]) -> None:
        try:
            results = self._try(changes)
        except Exception as error:
            if len(changes) == 1:
                changes[0].end(error=error)
            else:
                for change in changes:
                    self._commit([change])
        else:
            for change, result in zip(changes, results, strict=True):
                change.end(result)

    def _try(self, changes: list["_Change"]) -> list[Any]:
        with self._database.transaction() as session:
            return [change.make(session) for change in changes]


class _Change:
    """A change that waits to be committed, and then its result or error."""

    def __init__(self, make: Callable[[Session], Any]) -> None:
        self.make = make
        self.result: Any = None
        self.error: Exception | None = None
        self.is_done = False

    def end(self, result: Any = None, *, error: Exception | None = None) -> None:
        self.result, self.error, self.is_done = result, error, True
