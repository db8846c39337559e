"""The training benchmark runs on a CPU, and its setups learn the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.training import measure
from benchmarks.training_setups import SETUPS, draw_rows

pytestmark = pytest.mark.slow


def test_setups_are_measured_one_after_the_other(tmp_path: Path) -> None:
    names = ["recipe, TRL", "recipe, plain", "recipe"]
    setups = [replace(setup, steps=6, warm_up=2) for setup in SETUPS if setup.name in names]
    out = tmp_path / "out.json"

    rows = draw_rows(20, 300, longest=40)
    measure(out, setups, shape="tiny", row_ids=rows, folder=tmp_path, seconds=600)

    found = json.loads(out.read_text())
    lines = {line["name"]: line for line in found["measured"]}
    assert list(lines) == names
    assert found["device"] == "CPU"
    measured = [lines[name] for name in names]
    for line in measured:
        assert len(line["ms_of_steps"]) == 6
        assert line["tokens_a_step"] == measured[0]["tokens_a_step"] > 0
        # Of the first step; this worker also logs the last one.
        assert line["losses"][:1] == pytest.approx(measured[0]["losses"], rel=1e-2)
        assert line["profile"]["count"] > 100
    # The mean of steps 2 to 6, after the adapter has learned something.
    assert lines["recipe"]["losses"][1] == pytest.approx(lines["recipe, plain"]["losses"][1], rel=1e-3)
    assert lines["recipe"]["said"][-1].startswith("Optimizations: explicit decoder layers ")


def test_rows_are_as_long_as_those_of_the_data() -> None:
    lengths = sorted(map(len, draw_rows(4000, 100)))

    assert sum(lengths) / 4000 == pytest.approx(166, rel=0.05)
    assert lengths[3800] == pytest.approx(449, rel=0.05)
