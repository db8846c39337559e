"""How long steps take in the running engine: plain ones by rows, verifying ones by positions.

Knows no torch.
"""

import statistics
from collections import deque
from dataclasses import dataclass, field

# The first steps with so many rows or positions compile and capture; their times are not used.
_SKIPPED = 1
_NEEDED = 3
# The time of a step is the median of so many: other work on the machine interrupts some.
_RECENT = 7
# Verifying steps of so many positions, or of fewer beyond the next smaller number, take about as long.
SIZES = (2, 4, 8, 16, 32, 64)
# A time is forgotten, so that it is measured anew, after so many steps without another one: few where there
# is a single measurement, twice as many with each further one.
_FIRST_AGE = 16
_MAX_AGE = 2048
# Before any verifying step was measured, a further position is assumed to take this share of a plain step.
_ASSUMED_SHARE = 0.1


@dataclass
class _Times:
    """The last times of steps of one kind, and their median in seconds."""

    seconds: float = 0.0
    count: int = 0
    measured_at: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def add(self, seconds: float, now: int) -> None:
        """Add the time of step `now`."""
        if self.is_stale(now):
            self.recent.clear()
        self.count += 1
        self.measured_at = now
        if self.count > _SKIPPED:
            self.recent.append(seconds)
            self.seconds = statistics.median(self.recent)

    def is_stale(self, now: int) -> bool:
        """Whether the time is to be measured anew."""
        return now - self.measured_at > min(_FIRST_AGE << min(self.count, 10), _MAX_AGE)


class StepCosts:
    """The times of steps, in seconds."""

    def __init__(self) -> None:
        self._plain: dict[tuple[int, bool], _Times] = {}
        self._verifying: dict[int, _Times] = {}
        self._step_count = 0
        self._verified_count = 0
        # The value of `_verified_count` at the last plain step of a kind.
        self._plain_at: dict[tuple[int, bool], int] = {}

    def add_plain(self, rows: int, seconds: float, *, overlaps: bool) -> None:
        """Add the time of a step that makes a token for each row.

        `overlaps`: it was launched before the tokens of the step before it were read.
        """
        self._step_count += 1
        self._plain_at[rows, overlaps] = self._verified_count
        self._plain.setdefault((rows, overlaps), _Times()).add(seconds, self._step_count)

    def add_verifying(self, positions: int, seconds: float) -> None:
        """Add the time of a verifying step."""
        self._step_count += 1
        self._verified_count += 1
        times = self._verifying.setdefault(_size(positions), _Times())
        times.add(seconds, self._step_count)

    def plain(self, rows: int, *, overlaps: bool) -> float | None:
        """The time of a step of so many rows; None while too few were measured."""
        times = self._plain.get((rows, overlaps))
        return times.seconds if times and times.count >= _SKIPPED + _NEEDED else None

    def plain_age(self, rows: int, *, overlaps: bool) -> int:
        """The number of verifying steps since the last plain one of so many rows."""
        return self._verified_count - self._plain_at.get((rows, overlaps), self._verified_count)

    @property
    def has_verifying(self) -> bool:
        """Whether any verifying step was measured, lately."""
        return bool(self._measured())

    def verifying(self, positions: int, rows: int, plain_seconds: float) -> float:
        """The time of a verifying step of these rows, whose plain step takes `plain_seconds`.

        A size that was not measured is assumed to lie on the line through the nearest ones that were.
        """
        size = _size(positions)
        known = self._measured()
        if size in known:
            return known[size]
        below = max((one for one in known if one < size), default=None)
        above = min((one for one in known if one > size), default=None)
        start, start_seconds = (rows, plain_seconds) if below is None else (below, known[below])
        if above is not None and above > start:
            slope = (known[above] - start_seconds) / (above - start)
        elif below is not None and below > rows:
            slope = (start_seconds - plain_seconds) / (below - rows)
        else:
            slope = _ASSUMED_SHARE * plain_seconds
        return start_seconds + max(0.0, slope) * (size - start)

    def _measured(self) -> dict[int, float]:
        """The times by size."""
        return {
            size: times.seconds
            for size, times in self._verifying.items()
            if times.count > _SKIPPED and not times.is_stale(self._step_count)
        }


def _size(positions: int) -> int:
    return next((size for size in SIZES if size >= positions), positions)
