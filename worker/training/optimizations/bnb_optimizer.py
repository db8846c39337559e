"""Steps of bitsandbytes' optimizers without host synchronization, ordered with the job's CUDA stream.

bitsandbytes launches its kernels on the default stream, whatever the current stream is. So the default stream
must wait for the gradients, and the current stream for the optimizer's step. bitsandbytes also synchronizes
the host after each weight, and again for paged state: not needed where streams are ordered, since reading the
state (for a checkpoint) synchronizes anyway. And it prefetches the pages of each weight's state, which takes
the driver long; while device memory is free those pages never left the device. Patches bitsandbytes 0.50.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from bitsandbytes.optim import optimizer
from bitsandbytes.optim.optimizer import Optimizer8bit
from transformers import Trainer, TrainerCallback

# With less free memory, pages of paged state may have left the device.
_SCARCE_BYTES = 1 << 30


@contextmanager
def without_sync(trainer: Trainer) -> Iterator[None]:
    """Within this context streams order the optimizer's steps, and the host does not wait for them."""
    wait, prefetch = optimizer.sync_gpu, Optimizer8bit.prefetch_state  # the base class of all optimizers
    stream_steps = DefaultStreamSteps()

    def prefetch_state(self: Optimizer8bit, weight: torch.Tensor) -> None:
        if stream_steps.is_memory_short:
            prefetch(self, weight)

    optimizer.sync_gpu, Optimizer8bit.prefetch_state = _no_sync, prefetch_state
    trainer.add_callback(stream_steps)
    try:
        yield
    finally:
        trainer.remove_callback(stream_steps)
        optimizer.sync_gpu, Optimizer8bit.prefetch_state = wait, prefetch


class DefaultStreamSteps(TrainerCallback):
    """Runs each optimizer step on the default stream, ordered with the current stream."""

    def __init__(self) -> None:
        self._step = ExitStack()
        self.is_memory_short = True

    def on_pre_optimizer_step(self, *_given: Any, **_named: Any) -> None:
        """Make the step wait for the gradients, and the default stream current."""
        current, default = torch.cuda.current_stream(), torch.cuda.default_stream()
        default.wait_stream(current)
        self._step.enter_context(torch.cuda.stream(default))
        self._step.callback(current.wait_stream, default)
        free_bytes, _total = torch.cuda.mem_get_info()
        self.is_memory_short = free_bytes < _SCARCE_BYTES

    def on_optimizer_step(self, *_given: Any, **_named: Any) -> None:
        """Make the job's stream current again and wait for the step."""
        self._step.close()


def _no_sync(_weight: torch.Tensor) -> None:
    """Replaces bitsandbytes' `sync_gpu`."""
