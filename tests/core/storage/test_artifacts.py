"""A store whose clean-up fails too."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from app.core.storage.artifacts import ArtifactStore


class BrokenFileSystem(MemoryFileSystem):
    """An object store that is out of space, and then out of reach with an error of its client library."""

    protocol = "broken"

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        raise OSError("out of space")

    def exists(self, path: str, **kwargs: Any) -> bool:
        raise RuntimeError("out of reach")


def test_a_clean_up_that_fails_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    with pytest.raises(OSError, match="out of space"):
        ArtifactStore("broken://bucket").put_file("datasets/1", tmp_path / "file")
