"""Why a training child ended, in words for a person. Knows what exceptions the libraries raise for what."""

import errno
import re
import shutil
from pathlib import Path

import torch

from app.core.errors import DiskFull, OutOfMemory, TunesmithError
from worker.reports import Ended, Outcome

_MAX_LENGTH = 2000
_SECRETS = re.compile(r"hf_\w{8,}|(?<=://)[^/@\s]+(?=@)|(?<=[Bb]earer )\S+")
_ALMOST_NOTHING_BYTES = 1 << 20


def explain(error: BaseException, folder: Path) -> Ended:
    """The report that ends a failed child; `folder` is on the disk it writes to."""
    known = _name(error, folder)
    if isinstance(known, TunesmithError):
        return _ended(known.code, known.message, known.hint)
    message = f"Training stopped on an unexpected {type(error).__name__}: {error}"
    return _ended(TunesmithError.code, message, "The attempt's log has the whole traceback.")


def redact(text: str) -> str:
    """The text without access tokens and without user names and passwords in URLs."""
    return _SECRETS.sub("[secret]", text)


def _ended(code: str, message: str, hint: str | None) -> Ended:
    return Ended(outcome=Outcome.FAILED, code=code, message=redact(message)[:_MAX_LENGTH], hint=hint)


def _name(error: BaseException, folder: Path) -> BaseException:
    if isinstance(error, TunesmithError):
        return error
    if _is_disk_full(error, folder):
        return DiskFull(
            "The disk is full; the last complete checkpoint is kept.",
            hint="Free some space, then POST /jobs/{id}/retry goes on from that checkpoint.",
        )
    if _is_out_of_memory(error):
        return OutOfMemory(
            "The device ran out of memory.",
            hint="Lower training.per_device_train_batch_size and raise gradient_accumulation_steps to match, "
            "turn on gradient_checkpointing, or lower max_seq_length.",
        )
    return error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left on device" in str(error):  # safetensors has an exception of its own
        return True
    # torch.save says no more than that writing failed.
    return "PytorchStreamWriter" in str(error) and shutil.disk_usage(folder).free < _ALMOST_NOTHING_BYTES
