"""A store whose clean-up fails too."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from app.core.errors.storage import StoreUnreachable
from app.core.storage.artifact_cache import ArtifactCache
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
    with pytest.raises(StoreUnreachable, match="out of space"):
        ArtifactStore("broken://bucket").put_file("datasets/1", tmp_path / "file")


class AwayFileSystem(MemoryFileSystem):
    """An object store whose client library raises an error of its own, as botocore does."""

    protocol = "away"

    def _fail(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Could not connect\n to the endpoint")

    put_file = get_file = open = find = exists = ls = makedirs = _fail


def test_whatever_an_object_store_s_library_raises_names_the_store(tmp_path: Path) -> None:
    fsspec.register_implementation("away", AwayFileSystem, clobber=True)
    store, file = ArtifactStore("away://bucket"), tmp_path / "file"
    file.write_bytes(b"x")
    calls = [
        lambda: store.put_file("datasets/1", file),
        lambda: store.open("datasets/1"),
        lambda: store.list_files("datasets"),
        lambda: store.fetch("datasets/1", ArtifactCache(tmp_path / "cache")),
        lambda: store.download("datasets/1", tmp_path / "copy"),
        lambda: store.delete("datasets/1"),
        store.check,
    ]
    for call in calls:
        with pytest.raises(StoreUnreachable, match="does not answer: Could not connect to the endpoint"):
            call()
    store.discard("datasets/1")


def test_an_object_store_s_listings_are_not_cached(tmp_path: Path) -> None:
    assert ArtifactStore("memory://test-listings")._fs.dircache.use_listings_cache is False


def test_an_empty_object_store_answers() -> None:
    ArtifactStore("memory://test-artifacts-that-do-not-exist").check()
