"""Wait for what another process does. Polls, because nothing else crosses from a process under test."""

import threading
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

_STEP_SECONDS = 0.05


def wait_for(look: Callable[[], Found], what: str, *, timeout_seconds: float = 180) -> Found:
    """The first true thing that `look` answers; fails with `what` was waited for."""
    tick = threading.Event()
    for _ in range(int(timeout_seconds / _STEP_SECONDS)):
        found = look()
        if found:
            return found
        tick.wait(_STEP_SECONDS)
    raise AssertionError(f"waited {timeout_seconds:.0f} s for {what}")
