"""Means, pass rates and comparisons of grades, with 95% confidence intervals. Pure.

The interval of a pass rate is Wilson's (1927). That of a mean is the percentile bootstrap of 2,000 resamples
(Efron 1979), from 1,000 values on the normal approximation, which is the same there.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_Z = 1.959963984540054
_RESAMPLES = 2000
_NORMAL_FROM = 1000
_SEED = 0
# Scores that differ by less are a tie.
TIE = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A value of a sample, and the bounds of its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """How one model's scores compare with another's on the same rows; `difference` is the mean one."""

    wins: int
    ties: int
    losses: int
    difference: Estimate


def estimate_rate(passed: int, count: int) -> Estimate:
    """Returns the share that passed, with Wilson's score interval. `count` is at least 1."""
    share = passed / count
    scale = 1 + _Z**2 / count
    center = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    low, high = max(0.0, center - half), min(1.0, center + half)
    # Rounding must not leave the value outside of its own interval.
    return Estimate(share, min(low, share), max(high, share))


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Returns the mean of at least one value, with its confidence interval."""
    mean = fmean(values)
    if len(values) == 1 or min(values) == max(values):
        return Estimate(mean, mean, mean)
    if len(values) >= _NORMAL_FROM:
        half = _Z * stdev(values) / math.sqrt(len(values))
        return Estimate(mean, mean - half, mean + half)
    draws = random.Random(_SEED)
    count = len(values)
    means = sorted(math.fsum(draws.choices(values, k=count)) / count for _ in range(_RESAMPLES))
    low, high = (means[round(share * (_RESAMPLES - 1))] for share in (0.025, 0.975))
    return Estimate(mean, low, high)


def estimate_geometric_mean(values: Sequence[float]) -> Estimate:
    """Returns the geometric mean of positive values: that of perplexities, which are ratios."""
    logs = estimate_mean([math.log(value) for value in values])
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))


def compare(
    pairs: Sequence[tuple[float, float]], *, is_better_when_lower: bool = False
) -> PairedComparison | None:
    """Returns how the first score of each pair compares with the second; None without a pair."""
    if not pairs:
        return None
    differences = [mine - theirs for mine, theirs in pairs]
    sign = -1 if is_better_when_lower else 1
    wins = sum(sign * difference > TIE for difference in differences)
    losses = sum(sign * difference < -TIE for difference in differences)
    return PairedComparison(wins, len(pairs) - wins - losses, losses, estimate_mean(differences))


def differ(scores: Sequence[float]) -> bool:
    """Whether scores are not all the same."""
    return bool(scores) and max(scores) - min(scores) > TIE
