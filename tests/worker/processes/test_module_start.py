"""Garbage collection in a child of the worker: not while it imports, as ever from then on."""

import gc
from pathlib import Path

import pytest

from app.core import garbage
from worker.processes.child_process import ChildProcess

_MODULE = """
import gc, sys
print(__name__, len(sys.argv), gc.isenabled())
from worker.processes.child import ParentLink
link = ParentLink(int(sys.argv[1]))
print(gc.isenabled(), gc.get_freeze_count() > 1_000)
sys.exit(3)
"""


def test_a_child_s_imports_are_made_without_garbage_collection(tmp_path: Path) -> None:
    (tmp_path / "collected.py").write_text(_MODULE)

    child = ChildProcess("collected", None, tmp_path / "log", environment={"PYTHONPATH": str(tmp_path)})

    assert child.wait() == 3
    assert child.log_tail().splitlines() == ["__main__ 2 False", "True True"]
    child.close()


def test_garbage_is_collected_after_an_import_that_failed() -> None:
    def import_what_is_missing() -> None:
        with garbage.importing():
            assert not gc.isenabled()
            import there_is_no_such_module  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(ImportError):
        import_what_is_missing()

    assert gc.isenabled()
