"""The table of model families: what it says where a stage fails, and the tiny models it is made with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.core.engine.messages import ServingPath
from benchmarks.families.configs import FAMILIES, Family, find_families
from benchmarks.families.page import make_page
from benchmarks.families.results import FamilyResult, Run, Verdict, make_table
from benchmarks.families.tiny_model import make_config, make_tokenizer

# Families that differ most: windows, latent attention, a recurrent state, transposed layers, experts, sinks.
FEW = [
    *("Llama 3.1 to 3.3", "Gemma 3", "Qwen 3 MoE", "gpt-oss", "GPT-2", "Granite 3 MoE", "DeepSeek V3 and R1"),
    "Mamba",
]
ROOT = Path(__file__).parents[2]
YES = Verdict(works=True)
STAGES = ("preflight", "trained", "verified", "served", "equal_to_peft")


def make_run(**verdicts: Verdict | ServingPath) -> Run:
    paths = {"path": ServingPath.PAGED, "announced_path": ServingPath.PAGED}
    return Run(**{**dict.fromkeys(STAGES, YES), **paths, **verdicts})


def make_result(**fields: Any) -> FamilyResult:
    return FamilyResult(name="Llama 2", model_type="llama", **fields)


def last_row(result: FamilyResult) -> str:
    return make_table([result]).splitlines()[-1]


def test_a_family_that_works_has_no_reason() -> None:
    row = last_row(make_result(runs={"4 bits": make_run(), "unquantized": make_run()}))

    assert row == "| Llama 2 | `llama` | yes | yes | yes | paged | yes |  |"


def test_a_failure_of_one_width_is_said_with_its_width() -> None:
    broken = make_run(preflight=Verdict.no("too odd"), trained=Verdict.no("too odd"), verified=Verdict())

    row = last_row(make_result(runs={"4 bits": broken, "unquantized": make_run()}))

    assert "| 4 bits: **no**, unquantized: yes | 4 bits: -, unquantized: yes |" in row
    assert row.endswith("| 4 bits: too odd |")


@pytest.mark.parametrize(
    ("run", "contradiction"),
    [
        (make_run(), None),
        (make_run(trained=Verdict.no("")), "preflight lets a job pass that fails"),
        (make_run(verified=Verdict.no("")), "preflight lets a job pass that fails"),
        (make_run(preflight=Verdict.no("")), "preflight refuses a job that works"),
        (
            make_run(path=ServingPath.GENERAL),
            "preflight says that the paged path serves, and the general path does",
        ),
        (make_run(served=Verdict.no("")), "preflight does not say that the adapter can't be served"),
    ],
)
def test_what_preflight_said_is_compared_with_what_happened(run: Run, contradiction: str | None) -> None:
    assert run.contradiction == contradiction


def test_a_family_is_found_by_its_name_and_by_its_type() -> None:
    assert [family.name for family in find_families(["gpt2", "OLMo 2"])] == ["OLMo 2", "GPT-2"]
    with pytest.raises(ValueError, match="gpt3"):
        find_families(["llama", "gpt3"])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_tiny_model(family: Family) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(family, make_tokenizer()))

    assert model.num_parameters() < 1_000_000


def run_families(out: Path, names: list[str]) -> list[FamilyResult]:
    subprocess.run(
        [sys.executable, "-m", "benchmarks.families", "--families", ",".join(names), "--json", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return [FamilyResult.model_validate(one) for one in json.loads(out.read_text())["families"]]


def assert_all_work(results: list[FamilyResult]) -> None:
    failures = [result for result in results if result.says_no]
    assert not failures, make_table(failures)


@pytest.mark.timeout(600)
def test_families_that_differ_most_train_and_are_served_as_peft_computes_them(tmp_path: Path) -> None:
    results = run_families(tmp_path / "results.json", FEW)

    assert [result.name for result in results] == [family.name for family in find_families(FEW)]
    assert_all_work(results)


def test_the_page_is_that_of_the_committed_results() -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text())
    results = [FamilyResult.model_validate(one) for one in stored["families"]]

    assert (ROOT / "docs" / "families.md").read_text() == make_page(results, stored["versions"])
    assert [result.name for result in results] == [family.name for family in FAMILIES]


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_what_the_page_says_works_works(tmp_path: Path) -> None:
    page = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text())["families"]
    said = {one.name for one in map(FamilyResult.model_validate, page) if not one.says_no}

    results = run_families(tmp_path / "results.json", sorted(said - set(FEW)))

    assert_all_work(results)
