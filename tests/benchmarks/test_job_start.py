"""The start of a job is measured on the real child process."""

from pathlib import Path

from benchmarks import estimate_settings
from benchmarks.job_start import measure
from benchmarks.training_setups import TINY


def test_phases_follow_one_another_up_to_the_first_step(tmp_path: Path) -> None:
    estimate_settings.build("tiny", tmp_path, TINY)

    found = measure("tiny", tmp_path, tmp_path / "work")

    assert list(found) == ["preparing", "loading", "training", "step 1"]
    assert sorted(found.values()) == list(found.values())
