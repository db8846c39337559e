"""bitsandbytes' optimizers in the order of the other work, without waits and without prefetching in vain.

Their kernels always go to the default stream, whatever the present one is: it has to wait for the gradients,
and whoever goes on has to wait for it. They make the CPU wait after every weight, and once more where their
state is paged; that is not needed where the device keeps the order, since whoever reads the state (a
checkpoint) has waited for the whole step. And they ask for the pages of every weight's state to be brought to
the device, which takes the driver long; where memory is free, they never left.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from bitsandbytes.optim import optimizer
from bitsandbytes.optim.optimizer import Optimizer8bit
from transformers import Trainer, TrainerCallback

# With less free, pages may have had to leave.
_SCARCE_BYTES = 1 << 30


@contextmanager
def without_sync(trainer: Trainer) -> Iterator[None]:
    """Within it the device orders the optimizer's steps, and the CPU does not wait for them."""
    wait, prefetch = optimizer.sync_gpu, Optimizer8bit.prefetch_state  # the base of all of them
    stream_steps = DefaultStreamSteps()

    def prefetch_state(self: Optimizer8bit, weight: torch.Tensor) -> None:
        if stream_steps.is_memory_short:
            prefetch(self, weight)

    optimizer.sync_gpu, Optimizer8bit.prefetch_state = _go_on, prefetch_state
    trainer.add_callback(stream_steps)
    try:
        yield
    finally:
        trainer.remove_callback(stream_steps)
        optimizer.sync_gpu, Optimizer8bit.prefetch_state = wait, prefetch


class DefaultStreamSteps(TrainerCallback):
    """Makes the default stream the present one for an optimizer's step, behind what came before."""

    def __init__(self) -> None:
        self._turn = ExitStack()
        self.is_memory_short = True

    def on_pre_optimizer_step(self, *_given: Any, **_named: Any) -> None:
        """Its kernels wait for the gradients."""
        ours, theirs = torch.cuda.current_stream(), torch.cuda.default_stream()
        theirs.wait_stream(ours)
        self._turn.enter_context(torch.cuda.stream(theirs))
        self._turn.callback(ours.wait_stream, theirs)
        free_bytes, _total = torch.cuda.mem_get_info()
        self.is_memory_short = free_bytes < _SCARCE_BYTES

    def on_optimizer_step(self, *_given: Any, **_named: Any) -> None:
        """What comes next waits for them."""
        self._turn.close()


def _go_on(_weight: torch.Tensor) -> None:
    """In place of a wait."""
