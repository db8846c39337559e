"""The memory benchmark trains as jobs do, by the path that a setting names."""

from pathlib import Path
from typing import Any, Literal

import pytest

from benchmarks import estimate_settings
from benchmarks.estimate_run import train
from benchmarks.estimate_settings import Setting
from benchmarks.training_setups import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("benchmark")
    estimate_settings.build("tiny", parent, TINY)
    return parent


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("auto", "Optimizations: explicit decoder layers "),
        ("plain", "Optimizations: none;"),
    ],
)
def test_a_setting_trains_by_its_path(folder: Path, path: Literal["auto", "plain"], said: str) -> None:
    tiny: dict[str, Any] = {"model": "tiny", "path": path, "steps": 2}

    line = train(Setting("tiny", False, 2, 40, "ragged", False, r=4, optim="adamw_torch", **tiny), folder)

    assert line["said"][-1].startswith(said)
    assert len(line["passes"]) == len(line["losses"]) == 2
    for entry in line["passes"]:
        assert entry["sequences"] == 2
        assert entry["tokens"] == (entry["real_tokens"] if path == "auto" else 2 * 40)
