"""Percentiles of the times of streamed answers."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

# Of prefills; the first warms up.
_ROUNDS = 4


def summarize(firsts: Sequence[float], gaps: Sequence[float]) -> dict[str, float]:
    """Seconds to the first token and between tokens, as milliseconds at the 50th and 99th percentile.

    Those between tokens are left out where all text came at once.
    """
    found = {
        "first_token_p50_ms": round(statistics.median(firsts) * 1e3, 1),
        "first_token_p99_ms": round(percentile(firsts, 99) * 1e3, 1),
    }
    if gaps:
        found["between_tokens_p50_ms"] = round(percentile(gaps, 50) * 1e3, 2)
        found["between_tokens_p99_ms"] = round(percentile(gaps, 99) * 1e3, 2)
    return found


def measure_prefill(answer: Callable[[], dict[str, Any]]) -> dict[str, float]:
    """The medians over some rounds of the times to the first token. `answer` returns those of one round."""
    rounds = [answer() for _ in range(_ROUNDS)][1:]
    names = [name for name in rounds[0] if name.startswith("first_token")]
    return {name: statistics.median(one[name] for one in rounds) for name in names}


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
