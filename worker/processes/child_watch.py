"""Stays with a child that works beside the jobs (a fetch, an export) until its last report, or its end."""

import queue as stdlib_queue
import threading
from collections.abc import Callable
from typing import TypeVar

from worker.processes.child_process import ChildProcess

Last = TypeVar("Last")

_TICK_SECONDS = 0.5


def watch(
    child: ChildProcess,
    *,
    stop: threading.Event,
    grace_seconds: float,
    take: Callable[[bytes], Last | None],
    look: Callable[[], None],
) -> Last | None:
    """The child's last report; None where it died without one, or the worker was told to stop.

    `take` answers a line that is the last report, and deals with every other one; `look` is called while the
    child says nothing. Whatever they raise, and however it ends, the child is gone then.
    """
    try:
        last = _read(child, stop, take, look)
        child.wait(grace_seconds)
        return last
    finally:
        child.kill()
        child.close()


def last_words(child: ChildProcess) -> str:
    """How a child ended that gave no last report."""
    said = (child.log_tail().strip().splitlines() or ["it printed nothing"])[-1]
    return f"ended with status {child.exit_status} before it was done: {said}"


def _read(
    child: ChildProcess,
    stop: threading.Event,
    take: Callable[[bytes], Last | None],
    look: Callable[[], None],
) -> Last | None:
    while not stop.is_set():
        try:
            line = child.reports.get(timeout=_TICK_SECONDS)
        except stdlib_queue.Empty:
            look()
            continue
        if line is None:
            return None
        last = take(line)
        if last is not None:
            return last
    return None
