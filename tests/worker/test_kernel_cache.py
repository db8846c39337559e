"""Compiled kernels are stored in the data folder, where the next job's process finds them."""

from pathlib import Path

import pytest

from app.core.settings import Settings
from worker.__main__ import cache_compiled_kernels
from worker.processes.child_process import ChildProcess


def cache_of_a_child(tmp_path: Path) -> str:
    """The folder of Triton's cache that a child is given."""
    module = tmp_path / "say.py"
    module.write_text("import os; print(os.environ['TRITON_CACHE_DIR'])")
    child = ChildProcess("say", None, tmp_path / "log", environment={"PYTHONPATH": str(tmp_path)})
    child.wait()
    child.close()
    return child.log_tail().strip()


@pytest.mark.parametrize("own", [None, "/somewhere"])
def test_children_get_a_folder_for_compiled_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", own or "")
    if own is None:
        monkeypatch.delenv("TRITON_CACHE_DIR")

    cache_compiled_kernels(Settings(data_dir=tmp_path))

    assert cache_of_a_child(tmp_path) == (own or str(tmp_path / "cache" / "triton"))
