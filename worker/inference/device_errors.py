"""Errors of the device: a lack of memory, and a device that can't be used any more."""

import contextlib
from collections.abc import Iterator

import torch

from app.core.errors.jobs import OutOfMemory
from worker.models.device import Device, is_out_of_memory


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise OutOfMemory in the place of the errors that torch raises for it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        raise OutOfMemory("There is no memory left for this request.") from error


def is_usable(device: Device) -> bool:
    """Whether the device still works. After some errors of a GPU only a new process can use it."""
    try:
        return torch.ones(1, device=device.torch).item() == 1
    except RuntimeError:
        return False
