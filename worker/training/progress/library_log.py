"""What the libraries say while they work: warnings become events, each once; progress bars are off."""

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
# Said of every job, and nothing that a person could or should do anything about.
_EXPECTED = (
    "Paged optimizers are not supported on CPU",
    # PEFT 0.21 asks transformers 5.23 by the old name.
    "`is_gradient_checkpointing` is deprecated",
)
_NOISE = (
    "The tokenizer has new PAD/BOS/EOS tokens",
    "gemm_4bit_forward",
    "The following generation flags are not valid",
)


def attach(send: Callable[[BaseModel], None]) -> None:
    """Send the libraries' warnings from now on."""
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
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = redact(record.getMessage())[:_MAX_LENGTH]
        if message in self._said or any(noise in message for noise in _NOISE):
            return
        self._said.add(message)
        self._send(Happened(event=Warn(code="library", message=f"{record.name.split('.')[0]}: {message}")))
