"""Errors of the device: a lack of memory, and a device that can't be used any more."""

import contextlib
from collections.abc import Iterator

import torch

from app.core.errors.jobs import OutOfMemory
from worker.models.device import Device


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise OutOfMemory in the place of the errors that torch raises for it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory("The GPU has no memory left for this request.") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise OutOfMemory("The machine has no memory left for this request.") from error


def is_usable(device: Device) -> bool:
    """Whether the device still works. After some errors of a GPU only a new process can use it."""
    try:
        return torch.ones(1, device=device.torch).item() == 1
    except RuntimeError:
        return False
