"""Stops a job whose loss is not finite or has exploded, before it overwrites its good checkpoints.

The rule prefers few false alarms to an early one. For 20 steps in a row, longer than any spike from which an
adapter recovers, the loss must be above three times that of the first step, before anything was learned, and
above half of ln(vocabulary), the loss of uniform guessing: a small loss may triple without harm, and for an
unusual base model the rows may be noise from the start.
"""

import math

from app.core.errors.jobs import LossExploded, LossNotFinite
from worker.training.progress.counters import Counters

STEPS = 20
_TIMES_FIRST = 3.0
_TIMES_GUESSING = 0.5


def not_finite(thing: str, step: int, total: int, learning_rate: float) -> LossNotFinite:
    """The error for a loss or an adapter that is NaN or infinite."""
    return LossNotFinite(
        f"The {thing} became NaN or infinite at step {step} of {total}.",
        hint=f"Lower training.learning_rate (it is {learning_rate:g}) or give it a warm-up: "
        'lr_scheduler_type "cosine", warmup_ratio 0.1.',
    )


class LossGuard:
    """Checks the loss of every step, and counts steps in a row whose loss is far too high."""

    def __init__(self, counters: Counters, vocabulary: int) -> None:
        self._counters = counters
        self._guessing = math.log(vocabulary)

    def check(self, step: int, total: int, learning_rate: float) -> None:
        """Check the loss of the last step. Raises LossNotFinite, LossExploded."""
        counters = self._counters
        assert counters.first_loss is not None
        assert counters.last_loss is not None
        if not math.isfinite(counters.last_loss):
            raise not_finite("loss", step, total, learning_rate)
        limit = max(_TIMES_FIRST * counters.first_loss, _TIMES_GUESSING * self._guessing)
        counters.exploded_steps = counters.exploded_steps + 1 if counters.last_loss > limit else 0
        if counters.exploded_steps >= STEPS:
            raise LossExploded(
                f"The loss has been above {limit:.1f} for {STEPS} steps, {counters.last_loss:.1f} at step "
                f"{step}; it began at {counters.first_loss:.2f}, and a model that only guesses has "
                f"{self._guessing:.1f}. The last checkpoint from before is kept.",
                hint=f"Lower training.learning_rate (it is {learning_rate:g}).",
            )
