"""Stops a job whose loss has exploded, before it overwrites its good checkpoints.

A model that gives every token of its vocabulary the same chance has a loss of ln(vocabulary). A loss that
stays above that means that steps too large have thrown the weights far off: training noise does not do it for
20 steps on end. Three times the first step's loss, taken before anything was learned, must be passed as well:
to an odd base model the rows may be worse than noise.
"""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.core.errors import LossExploded
from worker.training.counters import Counters

STEPS = 20
_TIMES_FIRST = 3.0
# A single nat above guessing: a model that has learned nothing yet may lie a little above it.
_ABOVE_GUESSING = 1.0


class StopWhenExploded(TrainerCallback):
    """Counts steps whose loss is far too high; stands behind the Reporter, which ends the step."""

    def __init__(self, counters: Counters, vocabulary: int) -> None:
        self._counters = counters
        self._guessing = math.log(vocabulary)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        counters = self._counters
        assert counters.first_loss is not None
        assert counters.last_loss is not None
        limit = max(_TIMES_FIRST * counters.first_loss, self._guessing + _ABOVE_GUESSING)
        counters.exploded_steps = counters.exploded_steps + 1 if counters.last_loss > limit else 0
        if counters.exploded_steps >= STEPS:
            raise LossExploded(
                f"The loss has been above {limit:.1f} for {STEPS} steps, {counters.last_loss:.1f} at step "
                f"{state.global_step}; it began at {counters.first_loss:.2f}, and a model that only guesses "
                f"has {self._guessing:.1f}. The last checkpoint from before is kept.",
                hint=f"Lower training.learning_rate (it is {args.learning_rate:g}).",
            )
