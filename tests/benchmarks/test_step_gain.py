"""The benchmark of one step's gain runs on a CPU; without rounding the gain is what the gradient says."""

from pathlib import Path

import pytest

from benchmarks.first_steps import Bench, Setup
from benchmarks.step_gain import make_shape, measure

pytestmark = pytest.mark.slow


def test_the_gain_is_measured_with_and_without_rounding(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make_shape(layers=2, width=64), steps=1, longest=48)

    gain = measure(bench, Setup("llama", load_in_4bit=True, packing=False, dropout=0.0))["gain"]

    assert gain["float32"] == pytest.approx(gain["first_order"], rel=0.1)
    assert gain.keys() == {"first_order", "float32", "plain", "optimized"}
    assert all(one > 0 for one in gain.values())
