"""Exceptions in words for a person."""

import errno

import pytest
import torch

from app.core.errors.jobs import BadTarget
from worker.processes.redaction import redact
from worker.processes.reports import Ended, Outcome
from worker.training.failures import explain


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadTarget("Nothing is called so."), "bad_target_modules"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried…"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device"), "disk_full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "internal_error"),
        (ZeroDivisionError("division by zero"), "internal_error"),
    ],
)
def test_an_exception_gets_its_code(error: Exception, code: str) -> None:
    ended = explain(error)

    assert (ended.outcome, ended.code) == (Outcome.FAILED, code)
    assert ended.message


def test_an_unknown_exception_is_named_with_its_text() -> None:
    ended = explain(ZeroDivisionError("division by zero"))

    assert ended == Ended(
        outcome=Outcome.FAILED,
        code="internal_error",
        message="Training stopped on an unexpected ZeroDivisionError: division by zero",
        hint="The attempt's log has the whole traceback.",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token hf_abcdefghijklmnop is bad", "token [secret] is bad"),
        ("GET https://me:pass@host/x failed", "GET https://[secret]@host/x failed"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [secret]"),
        ("step 3 of 9", "step 3 of 9"),
    ],
)
def test_secrets_are_taken_out(text: str, expected: str) -> None:
    assert redact(text) == expected
