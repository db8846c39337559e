"""Temporary files of processes that were killed, beside those of processes that live."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.core.storage.scratch import Scratch, remove_abandoned, scratch_folder
from app.main import create_app

_CHILD = """
import sys
from pathlib import Path
from app.core.storage.scratch import Scratch
folder = Scratch(Path(sys.argv[1])).folder()
(folder / "upload-x").write_bytes(b"half")
print(folder, flush=True)
sys.stdin.read()
"""


def start_child(data_dir: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process that has written a file; it ends with its standard input."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(data_dir)],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    return child, Path(child.stdout.readline().strip())


def test_files_of_a_killed_process_are_removed_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    (killed, left), (living, used) = start_child(tmp_path), start_child(tmp_path)
    with killed, living:
        killed.kill()
        killed.wait()
        assert remove_abandoned(tmp_path) == [left]
        assert not left.exists()
        assert (used / "upload-x").read_bytes() == b"half"
        living.kill()


def test_a_folder_is_removed_when_it_is_closed(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    folder = scratch.folder()
    assert scratch.folder() == folder
    (folder / "file").write_bytes(b"x")
    assert remove_abandoned(tmp_path) == []
    scratch.close()
    assert not folder.exists()
    with scratch_folder(tmp_path) as other:
        assert other.is_dir()
    assert not other.exists()


def make(path: Path, mode: int, *, is_folder: bool) -> Path:
    """A file, or a folder with one, that is two days old."""
    if is_folder:
        path.mkdir()
    (path / "rows.jsonl" if is_folder else path).write_bytes(b"x")
    path.chmod(mode)
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(path, (long_ago, long_ago))
    return path


def test_what_earlier_versions_left_is_removed(tmp_path: Path) -> None:
    folders = [f"{prefix}-a1b2_c3d" for prefix in ("import", "backup", "restore", "rows")]
    left = [make(tmp_path / name, 0o700, is_folder=True) for name in folders]
    files = ["upload-a1b2_c3d.jsonl", "unpacked-0bcdefgh"]
    left += [make(tmp_path / name, 0o600, is_folder=False) for name in files]
    in_use = make(tmp_path / "upload-b1b2_c3d.jsonl", 0o600, is_folder=False)
    os.utime(in_use)
    assert sorted(remove_abandoned(tmp_path)) == sorted(left)
    assert list(tmp_path.iterdir()) == [in_use]


def test_a_user_s_own_files_stay(tmp_path: Path) -> None:
    files = {
        "backup-2026-11-01.tar": 0o600,
        "backup-a1b2_c3d": 0o600,
        "upload-a1b2_c3d": 0o600,
        "upload-a1b2_c3d.json": 0o600,
        "upload-a1b2_c3d.jsonl.gz": 0o600,
        "upload-customer.jsonl": 0o600,
        "upload-b1b2_c3d.jsonl": 0o644,
        "unpacked-a1b2_c3d.parquet": 0o600,
        "tunesmith.db": 0o600,
    }
    folders = {
        "import-me": 0o700,
        "import-customer": 0o700,
        "backup-20261101": 0o700,
        "backup-2026_q04": 0o755,
        "rows-a1b2_c3": 0o700,
        "restore-A1b2_c3d": 0o700,
        "unpacked-b1b2_c3d": 0o700,
        "scratch": 0o755,
    }
    own = [make(tmp_path / name, mode, is_folder=False) for name, mode in files.items()]
    own += [make(tmp_path / name, mode, is_folder=True) for name, mode in folders.items()]
    own.append(make(tmp_path / "scratch" / "my-notes", 0o700, is_folder=True))
    assert remove_abandoned(tmp_path) == []
    assert [path for path in own if not path.exists()] == []


def test_the_folder_of_all_processes_is_for_the_users_of_the_data_folder(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    if os.geteuid() == 0:
        os.chown(data_dir, 12345, 23456)
    data_dir.chmod(0o2777)
    with scratch_folder(data_dir):
        expected, found = data_dir.stat(), (data_dir / "scratch").stat()
        assert (found.st_uid, found.st_gid) == (expected.st_uid, expected.st_gid)
        assert found.st_mode == expected.st_mode
        # Nothing but the process's own folder, so nothing that only the first user may open.
        assert len(list((data_dir / "scratch").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process of another user")
def test_a_user_can_work_where_root_was_first(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as shared:  # pytest's own folders are closed to other users
        Path(shared).chmod(0o711)
        data_dir = Path(shared) / "data"
        data_dir.mkdir()
        os.chown(data_dir, 12345, 23456)
        with scratch_folder(data_dir) as of_root:
            as_user = os.fork()
            if as_user == 0:
                try:
                    os.setgid(23456)
                    os.setuid(12345)
                    with scratch_folder(data_dir) as own:
                        (own / "file").write_bytes(b"x")
                        assert remove_abandoned(data_dir) == []
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(as_user, 0)[1]) == 0
            assert of_root.is_dir()


def test_a_lock_that_can_t_be_opened_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "scratch" / "1-a1b2c3d4"
    (folder / ".lock").mkdir(parents=True)
    assert remove_abandoned(tmp_path) == []
    assert folder.is_dir()


def test_what_can_t_be_removed_is_logged_and_its_lock_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, free = (tmp_path / "scratch" / name for name in ("1-a1b2c3d4", "2-a1b2c3d4"))
    for folder in (stuck, free):
        folder.mkdir(parents=True)
        (folder / ".lock").touch()
    (stuck / "upload-x").touch()

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "upload-x":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        os.unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert remove_abandoned(tmp_path) == [free]
    assert str(stuck) in caplog.text
    assert remove_abandoned(tmp_path) == [stuck]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_serves_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(lock: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    left = tmp_path / "scratch" / "1-a1b2c3d4"
    left.mkdir(parents=True)
    (left / ".lock").touch()
    scratch = Scratch(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        folder = scratch.folder()
        assert remove_abandoned(tmp_path) == []
    # Nor by another host, whose own locks work.
    assert remove_abandoned(tmp_path) == [left]
    assert folder.is_dir()
    scratch.close()
    assert not folder.exists()


def test_a_folder_that_another_removed_is_made_again(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    first = scratch.folder()
    shutil.rmtree(first)
    second = scratch.folder()
    assert second.is_dir()
    assert remove_abandoned(tmp_path) == []
    scratch.close()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_api_starts_where_leftovers_can_t_be_listed(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    (settings.data_dir / "scratch").write_bytes(b"not a folder")
    with TestClient(create_app(settings)) as client:
        assert client.get("/health").status_code == 200
    assert "can't be removed" in caplog.text
