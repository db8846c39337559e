"""ArtifactStore: files of datasets, adapters and exports, in a folder or an object store (any fsspec URL).

A key is written once under a fresh id, and a database row names it only afterwards: no reader finds half a
file.
"""

import contextlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from app.core.errors.storage import StoreUnreachable
from app.core.storage.artifact_cache import ArtifactCache
from app.core.storage.disk import is_disk_full_error

# By default botocore waits for minutes for a store that is cut off.
_S3_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}}

log = logging.getLogger(__name__)


class ArtifactStore:
    """Stores, opens and deletes files by key: a relative path made of ids and never of user input.

    Every method raises StoreUnreachable where an object store does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url, **_options(url))
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def put_file(self, key: str, source: Path) -> None:
        """Copy a file into the store."""
        path = self._path(key)
        try:
            with self._reached():
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
        with self._reached():
            return cast(BinaryIO, self._fs.open(self._path(key), "rb"))

    def list_files(self, key: str) -> list[str]:
        """Returns the paths of the files under a folder, relative to it."""
        root = self._path(key)
        with self._reached():
            return sorted(path[len(root) + 1 :] for path in self._fs.find(root))

    def fetch(self, key: str, cache: ArtifactCache, hold: ExitStack | None = None) -> Path:
        """Returns a local path of a file or folder: itself where the store is local, else a copy in `cache`.

        The copy stays in the cache until `hold` is closed. Raises FileNotFoundError, and OSError where a copy
        is not what the store has.
        """
        path = self._path(key)
        with self._reached():
            is_here = self._fs.exists(path)
        if not is_here:
            raise FileNotFoundError(key)
        if self._is_local:
            return Path(path)
        return cache.get(key, partial(self.download, key), hold)

    def download(self, key: str, target: Path) -> None:
        """Copy a file or folder to a path that does not exist. Raises FileNotFoundError, OSError."""
        root = self._path(key)
        with self._reached():
            files = self._fs.find(root, detail=True)
        if not files:
            raise FileNotFoundError(key)
        for path, found in files.items():
            local = target / path[len(root) + 1 :] if path != root else target
            local.parent.mkdir(parents=True, exist_ok=True)
            with self._reached():
                self._fs.get_file(path, str(local))
            size = local.stat().st_size
            if size != found["size"]:
                raise OSError(f"{key}: {local.name} has {size:,} bytes instead of {found['size']:,}.")

    def delete(self, key: str) -> None:
        """Remove a file or folder, where it exists."""
        with self._reached():
            if self._fs.exists(self._path(key)):
                self._fs.rm(self._path(key), recursive=True)

    def discard(self, key: str) -> None:
        """Remove a file or folder that no row names any more; where the store is away, it stays."""
        try:
            self.delete(key)
        except StoreUnreachable as error:
            log.warning("%s stays in the store, and nothing needs it: %s", key, error.message)

    def check(self) -> None:
        """Read the store's first names. Raises StoreUnreachable."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._fs.ls(self._root, detail=False)

    @property
    def local_folder(self) -> Path | None:
        """The folder of the store, or None where it is an object store."""
        return Path(self._root) if self._is_local else None

    def _path(self, key: str) -> str:
        assert ".." not in key.split("/"), key
        return f"{self._root}/{key}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise StoreUnreachable for whatever an object store's library raises, but for missing files."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            # The disk is this machine's: a download may fill it.
            if self._is_local or is_disk_full_error(error):
                raise
            words = " ".join(str(error).split()) or type(error).__name__
            raise StoreUnreachable(f"The artifact store does not answer: {words}") from error


def _options(url: str) -> dict[str, Any]:
    """Options of the file system. Other hosts write to the store, so what it lists is not cached."""
    protocol, _, _ = url.partition("://")
    if "://" not in url or "::" in url or protocol in ("file", "local"):
        return {}
    options: dict[str, Any] = {"use_listings_cache": False}
    is_s3 = protocol in ("s3", "s3a")
    # What the environment says (FSSPEC_S3_CONFIG_KWARGS) has precedence.
    if is_s3 and "config_kwargs" not in fsspec.config.conf.get(protocol, {}):
        options["config_kwargs"] = _S3_TIMEOUTS
    return options
