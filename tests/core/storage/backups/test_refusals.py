"""Backups that can not be restored are refused, and nothing changes."""

import io
import json
from pathlib import Path

import pytest

from app.core.errors.storage import BackupUnusable, NotEmpty
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.backups.restore import restore_backup
from app.core.storage.database import Database
from tests.core.storage.backups.contents import add_dataset, members, rebuilt, take
from tests.factories import CHAT_ROW, make_job

LIST_OF_SUMS = b'{"format": 1, "files": 1, "sha256": ["0"]}'


@pytest.fixture
def tar(settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path) -> bytes:
    """A backup of a dataset."""
    add_dataset(database, store, tmp_path)
    return take(settings)


@pytest.fixture
def contents(tar: bytes) -> dict[str, bytes]:
    """The files of the backup by name."""
    return members(tar)


def test_a_database_with_rows_is_left_as_it_is(settings: Settings, database: Database) -> None:
    with database.transaction() as session:
        make_job(session)
    with pytest.raises(NotEmpty):
        restore_backup(settings, io.BytesIO(take(settings)))


def test_a_backup_cut_short_is_refused_and_changes_nothing(
    contents: dict[str, bytes], empty: Settings
) -> None:
    del contents["manifest.json"]
    with pytest.raises(BackupUnusable, match="its end is missing"):
        restore_backup(empty, rebuilt(contents))
    assert [path.name for path in empty.data_dir.iterdir() if path.is_dir()] == ["scratch"]
    assert list((empty.data_dir / "scratch").iterdir()) == []


def test_a_backup_that_lacks_a_file_is_refused(contents: dict[str, bytes], empty: Settings) -> None:
    assert json.loads(contents["manifest.json"])["files"] == 2
    del contents[next(name for name in contents if name.startswith("artifacts/"))]
    with pytest.raises(BackupUnusable, match=r"names 2 files .* 1 were found"):
        restore_backup(empty, rebuilt(contents))


def test_a_flipped_bit_is_refused_wherever_it_is(tar: bytes, empty: Settings) -> None:
    rows = tar.index(CHAT_ROW["messages"][0]["content"].encode())
    manifest = tar.rindex(b'"format": 1')
    for place in (rows, tar.index(b"SQLite format 3") + 2000, manifest + 4, len(tar) // 3):
        damaged = bytearray(tar)
        damaged[place] ^= 1
        with pytest.raises(BackupUnusable):
            restore_backup(empty, io.BytesIO(bytes(damaged)))
    assert restore_backup(empty, io.BytesIO(tar)) is True


def test_a_damaged_file_is_named(contents: dict[str, bytes], empty: Settings) -> None:
    name = next(name for name in contents if name.startswith("artifacts/"))
    contents[name] += b" "
    with pytest.raises(BackupUnusable, match=f"The backup is damaged: {name} is not what was written"):
        restore_backup(empty, rebuilt(contents))


def test_a_backup_of_an_earlier_version_has_no_checksums_and_is_restored(
    contents: dict[str, bytes], empty: Settings
) -> None:
    manifest = json.loads(contents["manifest.json"])
    del manifest["sha256"]
    contents["manifest.json"] = json.dumps(manifest).encode()
    assert restore_backup(empty, rebuilt(contents)) is False


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"3", b'{"format": 1}', b"[" * 100_000, b"\xff", LIST_OF_SUMS]
)
def test_a_manifest_that_can_t_be_read_is_refused(
    settings: Settings, database: Database, empty: Settings, manifest: bytes
) -> None:
    contents = members(take(settings)) | {"manifest.json": manifest}
    with pytest.raises(BackupUnusable, match="manifest can't be read"):
        restore_backup(empty, rebuilt(contents))


@pytest.mark.parametrize("name", ["../outside", "artifacts/../../outside", "/etc/outside", "other.db"])
def test_a_tar_with_unsafe_paths_is_refused(empty: Settings, tmp_path: Path, name: str) -> None:
    with pytest.raises(BackupUnusable, match="not a backup of Tunesmith"):
        restore_backup(empty, rebuilt({name: b"x"}))
    assert not (tmp_path / "outside").exists()


def test_a_file_that_is_no_tar_is_refused(empty: Settings) -> None:
    with pytest.raises(BackupUnusable, match="can't be read"):
        restore_backup(empty, io.BytesIO(b"no tar at all" * 100))
