"""Copies an upload into the process's scratch folder, for readers that need a path."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from app.core.storage.scratch import Scratch

_COPY_BYTES = 1 << 20


@contextmanager
def spooled(scratch: Scratch, upload: BinaryIO) -> Iterator[Path]:
    """The path of a temporary copy of the upload, which is removed when the context ends."""
    with tempfile.NamedTemporaryFile(dir=scratch.folder(), prefix="upload-", suffix=".jsonl") as copy:
        copyfileobj(upload, copy, _COPY_BYTES)
        copy.flush()
        yield Path(copy.name)
