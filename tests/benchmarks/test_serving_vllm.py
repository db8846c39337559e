"""`benchmarks.serving --peer vllm` on a package that stands in for vLLM, in processes of its own."""

import sys
from pathlib import Path

import pytest

from benchmarks.serving import _ratios
from benchmarks.serving_vllm import VllmBench
from tests.tiny_model import make_tiny_model
from tests.worker.inference.conftest import ADAPTERS, save_adapter

STAND_IN = Path(__file__).parent / "vllm_stand_in"
LINES = [(1, 0), (2, 0), (4, 2)]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an environment that has vLLM."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{STAND_IN}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def bench(python: Path, tmp_path: Path) -> VllmBench:
    model = make_tiny_model(tmp_path / "models")
    adapters = [save_adapter(model, tmp_path / name, **ADAPTERS["attention"]) for name in ("a", "b")]
    return VllmBench(
        str(python),
        model,
        adapters,
        prompt_tokens=6,
        new_tokens=5,
        is_4bit=False,
        memory_share=0.5,
        prefills=[(3, 20)],
    )


def test_the_installed_version_is_named(bench: VllmBench) -> None:
    assert bench.version() == "0.24.0+stand.in"


def test_without_vllm_the_message_says_how_to_name_one(bench: VllmBench, tmp_path: Path) -> None:
    without = VllmBench(sys.executable, bench.model, [], 6, 5, is_4bit=False, memory_share=0.5)

    with pytest.raises(SystemExit, match=r"(?s)No module named 'vllm'.*--peer-python vllm/bin/python"):
        without.version()


def test_the_same_lines_are_measured_in_process(bench: VllmBench) -> None:
    rows = list(bench.in_process(LINES, vocabulary_size=300))

    parts = ["vllm start", "vllm", "vllm", "vllm prefill", "vllm start", "vllm", "vllm prefill"]
    assert [row["part"] for row in rows] == parts
    assert [(row["batch"], row["adapters"]) for row in rows if row["part"] == "vllm"] == LINES
    assert all(row["tokens_per_second"] > 0 for row in rows if row["part"] == "vllm")
    prefills = [row for row in rows if row["part"] == "vllm prefill"]
    assert [(row["batch"], row["adapters"], row["prompt_tokens"]) for row in prefills] == [
        (3, 0, 20),
        (3, 1, 20),
    ]
    assert all("first_token_p99_ms" in row for row in prefills)


def test_the_same_lines_are_measured_through_its_server(bench: VllmBench) -> None:
    rows = list(bench.through_http(LINES, token_count=300))

    measured = [row for row in rows if row["part"] == "vllm http"]
    assert len(rows) - len(measured) == 2  # one start without adapters, one with them
    assert [(row["batch"], row["adapters"]) for row in measured] == LINES


def test_an_engine_that_fails_ends_the_run_with_its_log(bench: VllmBench) -> None:
    (bench.model / "config.json").unlink()

    with pytest.raises(SystemExit, match=r"(?s)vLLM failed:.*AssertionError"):
        list(bench.in_process(LINES, vocabulary_size=300))


def test_ratios_compare_in_process_with_in_process_and_server_with_server() -> None:
    rates = {"in process": 30.0, "vllm": 20.0, "http": 24.0, "vllm http": 16.0}
    rows = [
        {"part": part, "batch": 8, "adapters": 8, "tokens_per_second": rate} for part, rate in rates.items()
    ]

    found = _ratios(rows)

    assert found["in process / vllm: 8 clients, 8 adapters"] == 1.5
    assert found["http / vllm http: 8 clients, 8 adapters"] == 1.5
    assert found["http / in process: 8 clients, 8 adapters"] == 0.8
