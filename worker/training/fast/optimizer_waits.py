"""bitsandbytes' optimizers without their waits for the device.

They wait after every weight, and once more where their state is paged. Every kernel of theirs and of the
next step runs in the order in which it was launched, also on paged memory, so the device keeps things right;
whoever reads the state (a checkpoint) has waited for the whole step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from bitsandbytes.optim import optimizer


@contextmanager
def left_out() -> Iterator[None]:
    """Within it no step of an optimizer waits."""
    wait = optimizer.sync_gpu
    optimizer.sync_gpu = _go_on
    try:
        yield
    finally:
        optimizer.sync_gpu = wait


def _go_on(_weight: torch.Tensor) -> None:
    """In place of a wait."""
