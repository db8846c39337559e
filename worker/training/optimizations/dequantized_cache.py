"""Caches dequantized weights where a job has the device alone and enough memory is free.

Dequantizing 4-bit weights takes as long for ten tokens as for ten thousand: 17 ms of a step on a 7B model.
The first steps show how much memory the job needs; the cache uses what is free beyond that, and is released
when memory runs out (worker/training/trainer.py).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worker.training import memory
from worker.training.memory import SpareMemory

_AFTER_STEPS = 3
# Factor on the peak so far, since later batches may be larger than the first ones.
_GROWTH = 1.25
_SPARE_BYTES = 4 << 30


class FourBitWeights(Protocol):
    """Layers whose 4-bit weights can be cached dequantized."""

    @property
    def dequantized_bytes(self) -> int:
        """Bytes that caching all 4-bit weights dequantized takes."""

    def cache_dequantized(self) -> None:
        """Cache all 4-bit weights dequantized, in place of dequantizing them in every pass."""

    def drop_dequantized(self) -> bool:
        """Free the cached weights. Returns whether there were any."""


class DequantizedCache(TrainerCallback):
    """Decides once, after the first steps. `spare`: all spare memory of the trainer."""

    def __init__(
        self, linears: FourBitWeights, spare: Sequence[SpareMemory], say: Callable[[str], None]
    ) -> None:
        self._linears = linears
        self._spare = spare
        self._say = say
        self._steps = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._steps += 1
        if self._steps != _AFTER_STEPS:
            return
        if memory.free_bytes_at_peak(_GROWTH) >= self._linears.dequantized_bytes + _SPARE_BYTES:
            self._linears.cache_dequantized()
            self._say(
                f"This job has the device alone: {self._linears.dequantized_bytes / 1e9:.1f} GB of "
                "dequantized weights are cached from now on."
            )
            for spare in self._spare:
                spare.refresh()

    def release(self) -> bool:
        """Free the cache for the rest of the job. Returns whether there was one."""
        self._steps = _AFTER_STEPS
        return self._linears.drop_dequantized()

    def refresh(self) -> None:
        """Nothing to do: the cache does not depend on addresses of other memory."""
