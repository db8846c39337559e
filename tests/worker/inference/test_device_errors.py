"""A lack of memory of any kind becomes OutOfMemory, after which idle adapters are evicted."""

import pytest
import torch

from app.core.errors.jobs import OutOfMemory
from worker.inference.device_errors import memory_errors


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_named(error: BaseException) -> None:
    with pytest.raises(OutOfMemory), memory_errors():
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes do not fit")
