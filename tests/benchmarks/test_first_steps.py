"""The benchmark of the first steps runs on a CPU; in float32 its three runs would be one."""

from pathlib import Path

import pytest

from benchmarks.first_steps import SHAPES, Bench, Setup

pytestmark = pytest.mark.slow


def test_a_setup_is_trained_three_times(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SHAPES["tiny"], steps=3, longest=48)

    line = bench.measure(Setup("llama", load_in_4bit=True, packing=True, dropout=0.0))

    float32, plain, optimized = (line["losses"][kind] for kind in ("float32", "plain", "optimized"))
    assert len(float32) == len(plain) == len(optimized) == 3
    assert plain != float32 != optimized
    assert optimized == pytest.approx(float32, rel=1e-2)
    assert line["ratio"] > 0
