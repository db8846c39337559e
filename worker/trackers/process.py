"""The worker's end of a tracking process: starts it, sends it orders, waits for replies within a limit."""

import queue
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from worker.processes.child_process import ChildProcess
from worker.trackers.messages import (
    Closed,
    Deliver,
    Delivered,
    Finish,
    Opened,
    Reply,
    TrackerFailed,
    TrackingRequest,
    reply_adapter,
)

TRACKING_MODULE = "worker.trackers.run"
# Importing a tracker's package and opening a run may take half a minute on a busy machine.
_REPLY_SECONDS = 120.0
_TICK_SECONDS = 0.5

Expected = TypeVar("Expected", Opened, Delivered, Closed)


class TrackerProblem(Exception):
    """A tracker refused something, can't be reached, or does not respond. The text is for people."""


class TrackerProcess:
    """A process that has a run open. Nothing of it outlives the context."""

    def __init__(
        self,
        request: TrackingRequest,
        log_path: Path,
        *,
        environment: Mapping[str, str],
        find_deadline: Callable[[], float | None],
        module: str = TRACKING_MODULE,
    ) -> None:
        """`find_deadline`: when waiting ends at the latest, by time.monotonic; None: not known yet. What it
        raises ends the wait."""
        self._child = ChildProcess(module, request, log_path, environment=environment)
        self._find_deadline = find_deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.close()

    def wait_until_open(self) -> Opened:
        """Wait until the run is open. Raises TrackerProblem."""
        return self._expect(Opened, _REPLY_SECONDS)

    def deliver(self, order: Deliver) -> None:
        """Log points. Raises TrackerProblem."""
        self._child.send(order)
        self._expect(Delivered, _REPLY_SECONDS)

    def finish(self, order: Finish, timeout_seconds: float) -> None:
        """Close the run. Raises TrackerProblem."""
        self._child.send(order)
        self._expect(Closed, timeout_seconds)

    def _expect(self, kind: type[Expected], timeout_seconds: float) -> Expected:
        reply = self._read(timeout_seconds)
        if isinstance(reply, TrackerFailed):
            raise TrackerProblem(reply.message)
        assert isinstance(reply, kind)
        return reply

    def _read(self, timeout_seconds: float) -> Reply:
        """The next reply. Raises TrackerProblem."""
        began = time.monotonic()
        while True:
            try:
                line = self._child.reports.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                waited = time.monotonic() - began
                deadline = self._find_deadline()
                if waited > timeout_seconds or (deadline is not None and time.monotonic() > deadline):
                    raise TrackerProblem(f"there was no reply within {waited:.0f} s") from None
                continue
            if line is None:
                self._child.wait()
                raise TrackerProblem(f"its process {self._child.describe_death()}")
            return reply_adapter.validate_json(line)
