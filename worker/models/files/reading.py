"""Turns what a library raises while it reads a model's files into an error that names them.

The files of a base model, a tokenizer or an adapter are the user's, and a library raises whatever it meets
first: KeyError, TypeError, an error of its own. One boundary around each kind of file makes a sentence of it.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.core.errors import TunesmithError
from app.core.errors.base_models import ModelUnreadable
from app.core.storage.disk import is_disk_full_error
from worker.models.device import is_device_error, is_out_of_memory
from worker.models.files.error_text import describe

_log = logging.getLogger(__name__)


@contextmanager
def reading(
    subject: str, *, hint: str, raises: type[TunesmithError] = ModelUnreadable, param: str | None = None
) -> Iterator[None]:
    """Raise `raises` for any error that the files named by `subject` cause within the block.

    Errors of Tunesmith, a full disk, missing memory and faults of the device pass unchanged, as does all that
    ends a process.
    """
    try:
        yield
    except BaseException as error:
        if not is_caused_by_content(error):
            raise
        _log.warning("%s can't be used", subject, exc_info=error)
        raise raises(f"{subject} can't be used: {describe(error)}.", param=param, hint=hint) from error


def is_caused_by_content(error: BaseException) -> bool:
    """Whether an error that a library raised while it read something comes from what it read."""
    if not isinstance(error, Exception):
        # The libraries written in Rust (tokenizers, safetensors) raise this for a panic.
        return type(error).__name__ == "PanicException"
    is_of_machine = is_disk_full_error(error) or is_out_of_memory(error) or is_device_error(error)
    return not (isinstance(error, TunesmithError) or is_of_machine)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; empty where there is no file. Raises ModelUnreadable."""
    if not path.exists():
        return {}
    with reading(f"{path.name} in {path.parent.name!r}", hint="Copy the model's files again, all of them."):
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
        return found
