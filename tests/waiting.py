"""Waits for a condition that another process brings about, by polling."""

import threading
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

_STEP_SECONDS = 0.05


def wait_for(
    look: Callable[[], Found], what: str, *, timeout_seconds: float = 180, step_seconds: float = _STEP_SECONDS
) -> Found:
    """Poll `look` every `step_seconds` until its result is true.

    Returns it; raises AssertionError that names `what` after the timeout.
    """
    tick = threading.Event()
    for _ in range(int(timeout_seconds / step_seconds)):
        found = look()
        if found:
            return found
        tick.wait(step_seconds)
    raise AssertionError(f"waited {timeout_seconds:.0f} s for {what}")
