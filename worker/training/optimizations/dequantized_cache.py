"""Weights that stay unpacked where a job has the device for itself and memory to spare.

To unpack 4-bit weights takes as long for ten tokens as for ten thousand: 17 ms of a step on a 7B model. What
a job needs is seen in its first steps; what is free beyond that may as well be used. It is given back as soon
as memory runs out (trainer.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worker.training import memory
from worker.training.memory import SpareMemory
from worker.training.optimizations.lora.linears import FusedLora

_AFTER_STEPS = 3
# Later batches may be larger than the first ones.
_GROWTH = 1.25
_SPARE_BYTES = 4 << 30


class DequantizedCache(TrainerCallback):
    """Looks once, after the first steps. `spare` is all spare memory of the trainer."""

    def __init__(self, linears: FusedLora, spare: Sequence[SpareMemory], say: Callable[[str], None]) -> None:
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
        if memory.free_beside_peak(_GROWTH) >= self._linears.dequantized_bytes + _SPARE_BYTES:
            self._linears.cache_dequantized()
            self._say(
                f"The device is this job's alone: {self._linears.dequantized_bytes / 1e9:.1f} GB of weights "
                "stay unpacked from here on."
            )
            for spare in self._spare:
                spare.refresh()

    def release(self) -> bool:
        """Unpack in every pass again, and look no more; whether weights were kept."""
        self._steps = _AFTER_STEPS
        return self._linears.drop_dequantized()

    def refresh(self) -> None:
        """Nothing here depends on where anything lies."""
