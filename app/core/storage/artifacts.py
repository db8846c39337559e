"""ArtifactStore: files of datasets, adapters and exports, in a folder or an object store (any fsspec URL).

A key is written once under a fresh id, and a database row names it only afterwards: no reader finds half a
file.
"""

import contextlib
import shutil
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem


class ArtifactStore:
    """Stores, opens and deletes files by key: a relative path made of ids and never of user input."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def put_file(self, key: str, source: Path) -> None:
        """Copy a file into the store."""
        path = self._path(key)
        try:
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(source), path)
        except BaseException:
            # On a full disk, what was copied would fill it for good. An object store may raise anything here,
            # and must not hide the first error.
            with contextlib.suppress(Exception):
                self.delete(key)
            raise

    def put_folder(self, key: str, folder: Path) -> int:
        """Copy every file of a folder into the store. Returns their size in bytes."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in files:
            self.put_file(f"{key}/{path.relative_to(folder).as_posix()}", path)
        return sum(path.stat().st_size for path in files)

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading. Raises FileNotFoundError."""
        return cast(BinaryIO, self._fs.open(self._path(key), "rb"))

    def list_files(self, key: str) -> list[str]:
        """Returns the paths of the files under a folder, relative to it."""
        root = self._path(key)
        return sorted(path[len(root) + 1 :] for path in self._fs.find(root))

    def fetch(self, key: str, cache: Path) -> Path:
        """Returns a local path of a file or folder: itself where the store is local, else a copy in `cache`.

        Raises FileNotFoundError.
        """
        path = self._path(key)
        if not self._fs.exists(path):
            raise FileNotFoundError(key)
        if self._is_local:
            return Path(path)
        target = cache / key
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get(path, str(partial), recursive=True)
            partial.rename(target)
        return target

    def delete(self, key: str) -> None:
        """Remove a file or folder, where it exists."""
        if self._fs.exists(self._path(key)):
            self._fs.rm(self._path(key), recursive=True)

    @property
    def local_folder(self) -> Path | None:
        """The folder of the store, or None where it is an object store."""
        return Path(self._root) if self._is_local else None

    def _path(self, key: str) -> str:
        assert ".." not in key.split("/"), key
        return f"{self._root}/{key}"
