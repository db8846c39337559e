"""Copies an upload into the data folder, for readers that need a path."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from app.core.settings import Settings

_COPY_BYTES = 1 << 20


@contextmanager
def spooled(settings: Settings, upload: BinaryIO) -> Iterator[Path]:
    """The path of a temporary copy of the upload, which is removed when the context ends."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=settings.data_dir, prefix="upload-", suffix=".jsonl") as copy:
        copyfileobj(upload, copy, _COPY_BYTES)
        copy.flush()
        yield Path(copy.name)
