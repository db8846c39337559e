"""The benchmark of several GPUs runs on a CPU: every count of ranks learns from the same rows."""

import json
from pathlib import Path

import pytest

from benchmarks.several_gpus import make_setups, measure
from benchmarks.training_setups import TINY

pytestmark = pytest.mark.slow


def test_every_count_of_ranks_is_measured_and_has_the_losses_of_one(tmp_path: Path) -> None:
    out = tmp_path / "out.json"

    [_whole, divided] = make_setups(batch=1, checkpointing=False, steps=4)
    measure(
        out,
        [divided],
        gpus=2,
        shape="tiny",
        fields=TINY,
        rows=60,
        longest=40,
        folder=tmp_path,
        seconds=600,
    )

    one, two = json.loads(out.read_text())["measured"]
    assert (one["gpus"], two["gpus"]) == (1, 2)
    assert "failure" not in one | two
    assert one["tokens_a_step"] == two["tokens_a_step"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert two["speedup"] > 0
    assert two["losses_of_one_gpu"] == one["losses"]
    assert two["largest_loss_difference"] < 1e-3
    assert 1 > two["collectives_share"] >= two["exposed_collectives_share"] > one["collectives_share"] == 0
    assert [len(line["memory_bytes"]) for line in (one, two)] == [1, 2]
    assert min(one["memory_bytes"] + two["memory_bytes"]) > 100e6
