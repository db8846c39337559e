"""bitsandbytes' optimizers in the order of the other work, and without their waits for the device.

Their kernels always go to the default stream, whatever the present one is: it has to wait for the gradients,
and whoever goes on has to wait for it. They make the CPU wait after every weight, and once more where their
state is paged; that is not needed where the device keeps the order, since whoever reads the state (a
checkpoint) has waited for the whole step.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from bitsandbytes.optim import optimizer
from transformers import Trainer, TrainerCallback


@contextmanager
def in_order(trainer: Trainer) -> Iterator[None]:
    """Within it the device orders the optimizer's steps, and the CPU does not wait for them."""
    wait = optimizer.sync_gpu
    takes_turns = TakesTurns()
    optimizer.sync_gpu = _go_on
    trainer.add_callback(takes_turns)
    try:
        yield
    finally:
        trainer.remove_callback(takes_turns)
        optimizer.sync_gpu = wait


class TakesTurns(TrainerCallback):
    """Makes the default stream the present one for an optimizer's step, behind what came before."""

    def __init__(self) -> None:
        self._turn = ExitStack()

    def on_pre_optimizer_step(self, *_given: Any, **_named: Any) -> None:
        """Its kernels wait for the gradients."""
        ours, theirs = torch.cuda.current_stream(), torch.cuda.default_stream()
        theirs.wait_stream(ours)
        self._turn.enter_context(torch.cuda.stream(theirs))
        self._turn.callback(ours.wait_stream, theirs)

    def on_optimizer_step(self, *_given: Any, **_named: Any) -> None:
        """What comes next waits for them."""
        self._turn.close()


def _go_on(_weight: torch.Tensor) -> None:
    """In place of a wait."""
