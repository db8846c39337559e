"""The benchmark of a job's start measures the real child process, new or prewarmed."""

from pathlib import Path

import pytest

from benchmarks import estimate_settings
from benchmarks.job_start import measure
from benchmarks.training_setups import TINY

pytestmark = pytest.mark.slow

PHASES = ["preparing", "loading", "training", "step 1"]


@pytest.mark.parametrize("waits", [False, True], ids=["new", "waited"])
def test_phases_follow_one_another_up_to_the_first_step(tmp_path: Path, *, waits: bool) -> None:
    estimate_settings.build("tiny", tmp_path, TINY)

    found = measure("tiny", tmp_path, tmp_path / "work", tmp_path / "trials", waits=waits)

    before = [found.pop(name) for name in list(found) if name not in PHASES]
    assert list(found) == PHASES
    assert sorted(found.values()) == list(found.values())
    assert len(before) == (2 if waits else 0)
    assert all(before)
