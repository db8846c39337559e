"""What one process knows of the engines' work before the next heartbeats: its own requests, what they have
brought onto which device, and what probes found. Used from one event loop.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.core.engine.messages import GenerateRequest
from app.core.engine.state import EngineHealth

# Longer than heartbeats are apart: afterwards the engine's state says what it holds.
_REMEMBERED_SECONDS = 15.0
# An engine that did not manage to load something is not asked to again before this time.
_COPY_AGAIN_SECONDS = 30.0
# Two waits of one model or adapter further apart than this are not one.
_GAP_SECONDS = 2.0


@dataclass(frozen=True)
class Wanted:
    """What a request needs on an engine's device: a base model, by its key, and perhaps an adapter."""

    base_key: str
    adapter_id: str | None = None

    @classmethod
    def of(cls, request: GenerateRequest) -> "Wanted":
        """Returns what a request needs."""
        return cls(request.base_model.key, request.adapter.id if request.adapter else None)


@dataclass
class _Overload:
    began_at: float
    seen_at: float


class EngineLoads:
    """Engines are named by their addresses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._own: Counter[str] = Counter()
        self._own_for: Counter[tuple[str, Wanted]] = Counter()
        self._others: dict[str, int] = {}
        self._used_at: dict[tuple[str, Wanted], float] = {}
        self._copied_at: dict[tuple[str, Wanted], float] = {}
        self._overloads: dict[Wanted, _Overload] = {}

    @contextmanager
    def counting(self, url: str, wanted: Wanted) -> Iterator[None]:
        """Count a request as the engine's work while the context lasts."""
        keys = {wanted, Wanted(wanted.base_key)}
        self._own[url] += 1
        self._own_for.update((url, key) for key in keys)
        try:
            yield
        finally:
            self._own[url] -= 1
            self._own_for.subtract((url, key) for key in keys)
            # Without the entries that are zero.
            self._own, self._own_for = +self._own, +self._own_for

    def load(self, url: str) -> int:
        """How many requests the engine has: this process's, and those that the last probe found besides."""
        return self._own[url] + self._others.get(url, 0)

    def own(self, url: str) -> int:
        """How many requests of this process the engine has."""
        return self._own[url]

    def record_probe(self, url: str, health: EngineHealth) -> None:
        """Record what an engine says that it does."""
        self._others[url] = max(0, health.running + health.waiting - self._own[url])

    def forget_probe(self, url: str) -> None:
        """Forget what a probe found, which is not repeated while this process has no request there."""
        self._others.pop(url, None)

    def record_use(self, url: str, wanted: Wanted) -> None:
        """Record that the engine has just used a base model, or an adapter on it."""
        now = self._clock()
        self._used_at = {key: at for key, at in self._used_at.items() if now - at < _REMEMBERED_SECONDS}
        for key in (wanted, Wanted(wanted.base_key)):
            self._used_at[url, key] = now

    def has_brought(self, url: str, wanted: Wanted) -> bool:
        """Whether requests of this process have brought it onto the engine's device, or are about to."""
        used_at = self._used_at.get((url, wanted))
        is_recent = used_at is not None and self._clock() - used_at < _REMEMBERED_SECONDS
        return is_recent or self._own_for[url, wanted] > 0

    def measure_overload(self, wanted: Wanted, *, is_overloaded: bool) -> float:
        """Record whether the engines that have it are overloaded; returns for how many seconds they were."""
        if not is_overloaded:
            self._overloads.pop(wanted, None)
            return 0.0
        now = self._clock()
        self._overloads = {
            key: one for key, one in self._overloads.items() if now - one.seen_at <= _GAP_SECONDS
        }
        found = self._overloads.setdefault(wanted, _Overload(now, now))
        found.seen_at = now
        return now - found.began_at

    def begin_copy(self, url: str, wanted: Wanted) -> bool:
        """Whether the engine should be asked to load it now: it was not asked a short while ago."""
        now = self._clock()
        self._copied_at = {key: at for key, at in self._copied_at.items() if now - at < _COPY_AGAIN_SECONDS}
        if (url, wanted) in self._copied_at:
            return False
        self._copied_at[url, wanted] = now
        return True
