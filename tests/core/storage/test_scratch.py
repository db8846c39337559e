"""Temporary files of processes that were killed, beside those of processes that live."""

import os
import subprocess
import sys
import time
from pathlib import Path

from app.core.storage.scratch import Scratch, remove_abandoned, scratch_folder

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


def test_old_files_of_earlier_versions_are_removed_and_new_ones_stay(tmp_path: Path) -> None:
    old, new, kept = (tmp_path / name for name in ("upload-old.jsonl", "upload-new.jsonl", "tunesmith.db"))
    folder = tmp_path / "import-old"
    folder.mkdir()
    for path in (old, new, kept):
        path.write_bytes(b"x")
    long_ago = time.time() - 2 * 24 * 3600
    for path in (old, kept, folder):
        os.utime(path, (long_ago, long_ago))
    assert sorted(remove_abandoned(tmp_path)) == [folder, old]
    assert new.exists()
    assert kept.exists()
