"""Copies of artifacts: whole or absent whoever makes them, and the least recently used removed first."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from app.core.storage.artifact_cache import ArtifactCache
from app.core.storage.artifacts import ArtifactStore

_HOUR = 3600.0


def _writer(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _age(cache: ArtifactCache, key: str, hours: float) -> None:
    entry = cache.folder / ".entries" / key.replace("/", "%2F")
    used_at = entry.stat().st_mtime - hours * _HOUR
    os.utime(entry, (used_at, used_at))


def test_two_that_copy_the_same_folder_at_once_each_get_all_of_it(tmp_path: Path) -> None:
    cache, both = ArtifactCache(tmp_path), threading.Barrier(2)
    found: list[list[str]] = []

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "first").write_bytes(b"1")
        both.wait(10)
        (folder / "second").write_bytes(b"2")

    def copy() -> None:
        found.append(sorted(path.name for path in cache.get("adapters/ad_1", fill).iterdir()))

    threads = [threading.Thread(target=copy) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["first", "second"]] * 2
    assert list((tmp_path / ".partial").iterdir()) == []


def test_the_least_recently_used_copy_is_removed_first(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, limit_bytes=25)
    for name, hours in (("a", 3), ("b", 2), ("c", 1)):
        cache.get(name, _writer(bytes(10)))
        _age(cache, name, hours)
    cache.get("b", _writer(b""))
    cache.get("d", _writer(bytes(10)))
    assert [name for name in "abcd" if (tmp_path / name).exists()] == ["b", "d"]
    assert cache.get("a", _writer(b"again")).read_bytes() == b"again"


def test_a_copy_in_use_and_one_that_was_just_read_are_not_removed(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, limit_bytes=0)
    with ExitStack() as hold:
        cache.get("held", _writer(bytes(10)), hold)
        _age(cache, "held", 5)
        cache.get("read", _writer(bytes(10)))
        cache.shrink(0)
        assert [name for name in ("held", "read") if (tmp_path / name).exists()] == ["held", "read"]
    cache.shrink(0)
    assert [name for name in ("held", "read") if (tmp_path / name).exists()] == ["read"]


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the network is down")

    with pytest.raises(OSError, match="network"):
        ArtifactCache(tmp_path).get("adapters/ad_1", fail)
    assert not (tmp_path / "adapters").exists()
    assert list((tmp_path / ".partial").iterdir()) == []


class CuttingFileSystem(MemoryFileSystem):
    """An object store whose connection breaks off in the middle of a file, without an error."""

    protocol = "cutting"
    store: Any = {}  # noqa: RUF012  (MemoryFileSystem has it so)

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        super().get_file(rpath, lpath, **kwargs)
        os.truncate(lpath, os.path.getsize(lpath) // 2)


def test_a_file_that_arrives_cut_is_refused(tmp_path: Path) -> None:
    fsspec.register_implementation("cutting", CuttingFileSystem, clobber=True)
    store, source = ArtifactStore("cutting://bucket"), tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(bytes(1000))
    store.put_folder("adapters/ad_1", source)
    with pytest.raises(OSError, match="weights has 500 bytes instead of 1,000"):
        store.fetch("adapters/ad_1", ArtifactCache(tmp_path / "cache"))
    assert not (tmp_path / "cache" / "adapters").exists()


def test_a_copy_has_the_files_of_every_folder(tmp_path: Path) -> None:
    store, source = ArtifactStore("memory://test-artifact-cache"), tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(b"x")
    store.put_folder("adapters/ad_1", source)
    store.put_file("datasets/ds_1/rows.jsonl", source / "inner" / "file")
    cache = ArtifactCache(tmp_path / "cache")
    assert (store.fetch("adapters/ad_1", cache) / "inner" / "file").read_bytes() == b"x"
    assert store.fetch("datasets/ds_1/rows.jsonl", cache).read_bytes() == b"x"
    with pytest.raises(FileNotFoundError):
        store.fetch("adapters/ad_2", cache)
