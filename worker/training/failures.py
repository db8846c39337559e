"""Turns the exception that ended a training process into the report of its failure."""

from app.core.errors import TunesmithError
from app.core.errors.jobs import DiskFull, OutOfMemory
from app.core.storage.disk import is_disk_full_error
from worker.models.device import is_out_of_memory
from worker.processes.redaction import redact
from worker.processes.reports import Ended, Outcome

_MAX_LENGTH = 2000


def explain(error: BaseException) -> Ended:
    """The last report of a process that failed with this exception."""
    known = _name(error)
    if isinstance(known, TunesmithError):
        return _ended(known.code, known.message, known.hint)
    message = f"Training stopped on an unexpected {type(error).__name__}: {error}"
    return _ended(TunesmithError.code, message, "The attempt's log has the whole traceback.")


def _ended(code: str, message: str, hint: str | None) -> Ended:
    return Ended(outcome=Outcome.FAILED, code=code, message=redact(message)[:_MAX_LENGTH], hint=hint)


def _name(error: BaseException) -> BaseException:
    if isinstance(error, TunesmithError):
        return error
    if is_disk_full_error(error):
        return DiskFull()
    if is_out_of_memory(error):
        return OutOfMemory(
            "The device ran out of memory.",
            hint="Turn on training.gradient_checkpointing, or lower training.max_seq_length or lora.r.",
        )
    return error
