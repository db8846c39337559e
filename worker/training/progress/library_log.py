"""Turns warnings that the libraries log into events, each once; turns their progress bars off."""

import logging
import warnings
from collections.abc import Callable

import datasets
import transformers
from pydantic import BaseModel

from app.core.jobs.events import Warn
from worker.processes.redaction import redact
from worker.processes.reports import Happened

_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "bitsandbytes", "torch")
_MAX_LENGTH = 500
# Warnings of every job, which need no action.
_EXPECTED = (
    "Paged optimizers are not supported on CPU",
    # PEFT 0.21 reads an attribute of transformers 5.23 by its old name.
    "`is_gradient_checkpointing` is deprecated",
)
_NOISE = (
    # Each rank of a job over several devices runs its trainer alone (ranks/world.py).
    "torch.distributed process group is initialized",
    "The tokenizer has new PAD/BOS/EOS tokens",
    "gemm_4bit_forward",
    "The following generation flags are not valid",
)


def attach(send: Callable[[BaseModel], None]) -> None:
    """Send the libraries' warnings as events from now on."""
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    handler = _Sender(send)
    for name in _LIBRARIES:
        logging.getLogger(name).addHandler(handler)


class _Sender(logging.Handler):
    def __init__(self, send: Callable[[BaseModel], None]) -> None:
        super().__init__(logging.WARNING)
        self._send = send
        self._sent: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = redact(record.getMessage())[:_MAX_LENGTH]
        if message in self._sent or any(noise in message for noise in _NOISE):
            return
        self._sent.add(message)
        self._send(Happened(event=Warn(code="library", message=f"{record.name.split('.')[0]}: {message}")))
