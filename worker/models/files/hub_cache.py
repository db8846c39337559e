"""The base models in the Hub's cache of this machine: listed, marked as used, deleted. Knows no torch.

The cache belongs to all programs of the user. Its layout is documented at
huggingface.co/docs/huggingface_hub/guides/manage-cache: a folder a repository, files under `blobs`, and links
to them in a folder for each commit under `snapshots`.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, get_token

from app.core.engine.base_models import DownloadedModel, ModelDescription, describe_config

_PREFIX = "models--"
_WEIGHTS = "*.safetensors"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Folders that are about to be deleted; one that a killed process has left is deleted with the next.
_REMOVED = ".removed-"

_log = logging.getLogger(__name__)


def has_token() -> bool:
    """Whether this process has a token for the Hub, from its environment or from the Hub's login."""
    return get_token() is not None


def find_cache() -> Path:
    """The folder of the cache, which need not exist."""
    return Path(constants.HF_HUB_CACHE)


def list_downloaded() -> list[DownloadedModel]:
    """Every language model of the cache, sorted by name; models of other kinds are other programs' own."""
    try:
        folders = sorted(path for path in find_cache().glob(f"{_PREFIX}*--*") if path.is_dir())
    except OSError as error:
        _log.warning("The Hub's cache can't be read: %s", error)
        return []
    return [model for folder in folders if (model := _describe(folder))]


def mark_used(snapshot: Path) -> None:
    """Set the time of access of a model's weights: disks that are mounted without such times have no other.

    `snapshot` is the folder of a revision in the cache; a folder elsewhere is left alone.
    """
    if not snapshot.parent.parent.name.startswith(_PREFIX):
        return
    try:
        for path in list(snapshot.glob(_WEIGHTS))[:1]:
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except OSError as error:
        _log.info("The use of %s can't be marked: %s", snapshot, error)


def remove(name: str) -> int:
    """Delete a model from the cache, with a download that broke off. Returns its size in bytes; 0: not there.

    The name is compared with those of the folders and never joined to a path. Raises OSError.
    """
    cache = find_cache()
    folder = next((path for path in cache.glob(f"{_PREFIX}*--*") if _read_name(path) == name), None)
    if folder is None:
        return 0
    size = sum(status.st_size for _, status in _list_files(folder))
    # The rename takes no time: nobody finds half of a model.
    doomed = folder.with_name(f"{_REMOVED}{folder.name}-{time.time_ns()}")
    folder.rename(doomed)
    for path in cache.glob(f"{_REMOVED}{_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(cache / ".locks" / folder.name, ignore_errors=True)
    return size


def _describe(folder: Path) -> DownloadedModel | None:
    try:
        files = list(_list_files(folder))
        snapshot = _find_snapshot(folder)
        if not files or snapshot is None or not (snapshot / "config.json").is_file():
            return None
        description = _read_description((snapshot / "config.json").resolve())
        if not description.continues_text:
            return None
        return DownloadedModel(
            name=_read_name(folder),
            size_bytes=sum(status.st_size for _, status in files),
            used_at=datetime.fromtimestamp(_find_use(snapshot, files), UTC),
            is_whole=_has_weights(snapshot),
            description=description,
        )
    except OSError as error:  # as where another program deletes it meanwhile
        _log.info("%s can't be read: %s", folder, error)
        return None


def _read_name(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX).replace("--", "/", 1)


def _list_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file below a folder that is no link."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if not path.is_symlink():
                yield path, path.stat()


def _find_snapshot(folder: Path) -> Path | None:
    """The folder of the revision that a download without a revision names, or else of the newest."""
    reference = folder / "refs" / "main"
    if reference.is_file():
        found = folder / "snapshots" / reference.read_text().strip()
        if found.is_dir():
            return found
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _find_use(snapshot: Path, files: list[tuple[Path, os.stat_result]]) -> float:
    """When the weights were last read, or else when the last file came.

    Configurations are read by lists such as this one: their times of access mean nothing.
    """
    weights = [path.stat() for path in snapshot.glob(_WEIGHTS) if path.is_file()]
    times = [max(status.st_atime, status.st_mtime) for status in weights]
    return max([*times, *(status.st_mtime for _, status in files)])


def _has_weights(snapshot: Path) -> bool:
    if (snapshot / _SINGLE).is_file():
        return True
    index = snapshot / _INDEX
    if not index.is_file():
        return any(snapshot.glob(_WEIGHTS))
    names = _read_shards(index.resolve())
    return bool(names) and all((snapshot / name).is_file() for name in names)


# A file of the cache never changes: its name is the checksum of its content.
@lru_cache(maxsize=256)
def _read_shards(index: Path) -> frozenset[str]:
    """The names of the files that an index of weights lists; empty where it can't be read."""
    try:
        return frozenset(map(str, json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return frozenset()


@lru_cache(maxsize=256)
def _read_description(config: Path) -> ModelDescription:
    return describe_config(config)
