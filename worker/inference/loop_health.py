"""Whether the engine's loop moves: how long it has not, and how long what it does now may take.

Another thread asks for a sign by a command in the loop's queue. Knows nothing else of the engine.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# How long the loop may not move: between steps, and while it reads an adapter or frees a model's memory.
_MOVING_SECONDS = 10.0
ADAPTER_SECONDS = 300.0
UNLOAD_SECONDS = 120.0


@dataclass(frozen=True)
class Silence:
    """For how long the loop has given no sign, and for how long it may."""

    seconds: float
    limit_seconds: float


@dataclass(frozen=True)
class _Phase:
    """What the loop does now: how long that may take, and when it began."""

    limit_seconds: float
    began_at: float


class LoopHealth:
    """`put` queues a command for the loop, which runs it once it moves."""

    def __init__(self, put: Callable[[Callable[[], None]], None], clock: Callable[[], float]) -> None:
        self._put = put
        self._clock = clock
        # When the loop was asked for a sign that it has not given yet.
        self._asked_at: float | None = None
        # Replaced as a whole: `measure` reads it in another thread.
        self._phase = _Phase(_MOVING_SECONDS, clock())

    def measure(self) -> Silence:
        """Ask the loop for a sign. Called in one thread only, which may be another one than the loop's."""
        asked_at, phase = self._asked_at, self._phase
        if asked_at is None:
            asked_at = self._asked_at = self._clock()
            self._put(self._give_sign)
        # What the loop did before has had a limit of its own.
        return Silence(self._clock() - max(asked_at, phase.began_at), phase.limit_seconds)

    @contextmanager
    def taking(self, seconds: float) -> Iterator[None]:
        """Allow what the loop does in the context to take so long."""
        before, self._phase = self._phase, _Phase(seconds, self._clock())
        try:
            yield
        finally:
            self._phase = _Phase(before.limit_seconds, self._clock())

    def _give_sign(self) -> None:
        self._asked_at = None
