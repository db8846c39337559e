"""The parts of benchmarks.serving that need no real model, on a tiny one."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import estimate_settings
from benchmarks.serving_engine import Bench
from benchmarks.serving_inputs import write_adapters
from benchmarks.serving_speculation import copies, make_copying
from benchmarks.serving_steps import measure_steps
from benchmarks.training_setups import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    estimate_settings.build("tiny", folder, TINY)
    return folder / "models" / "tiny"


def test_a_model_made_to_copy_continues_its_prompt(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    successors = make_copying(model)
    text = [7]
    for _ in range(40):
        text.append(successors[text[-1]])

    answer = model.generate(torch.tensor([[5, 6, *text, 9, 7]]), max_new_tokens=40, do_sample=False)

    assert answer[0, -40:].tolist() == text[1:]
    assert len(set(text)) == len(text)


def test_answers_that_copy_are_the_same_with_drafts(model_folder: Path) -> None:
    successors: list[int] = []
    bench = Bench(
        model_folder,
        load_in_4bit=False,
        adapters=[],
        prepare=lambda model: successors.extend(make_copying(model)),
    )

    rows = list(copies(bench, successors, [1, 2], new_tokens=48, repeats=1))

    assert [(row["batch"], row["tokens"]) for row in rows] == [(1, 48)] * 6 + [(2, 96)] * 6
    assert all(row["same_tokens"] for row in rows)
    assert all(row["drafted"] == 0 for row in rows if row["answers"] == "nothing copied")


def test_a_step_is_divided_among_its_operators(model_folder: Path, tmp_path: Path) -> None:
    folders = write_adapters(model_folder, tmp_path, 1)
    bench = Bench(model_folder, load_in_4bit=False, adapters=folders)

    found = measure_steps(bench, batch=2, adapters=1)

    assert found["kernels_a_step"] >= sum(kernel["count"] for kernel in found["kernels"]) > 0
    assert found["us_in_all_kernels"] >= max(kernel["us"] for kernel in found["kernels"])
