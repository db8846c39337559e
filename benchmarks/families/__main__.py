"""Which model families work, tried on a CPU with tiny random models of 2 to 4 layers.

python -m benchmarks.families                          all of them, as a table in Markdown
python -m benchmarks.families --families llama,gpt2    some, by name or `model_type`
python -m benchmarks.families --json FILE              the results with all details as well
"""

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before torch is imported: the table is about families, not about a GPU; as the worker's children have it.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.families.configs import FAMILIES, find_families
from benchmarks.families.page import make_page
from benchmarks.families.processes import run_families
from benchmarks.families.results import FamilyResult, make_table

_LIBRARIES = ("transformers", "peft", "trl", "torch", "bitsandbytes")
_RESULTS = Path("benchmarks/results/families.json")
_PAGE = Path("docs/families.md")


def main() -> None:
    """Run the families of the command line and print their table; each one's name as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", type=_split, help="names or model types, with commas between them")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the committed page and results; those of families that are not run stay",
    )
    parser.add_argument("--folder", type=Path, help="keep models, adapters and logs in this folder")
    parser.add_argument("--targets", choices=["all-linear"], help="lora.target_modules; else the recipe's")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    try:
        families = find_families(options.families)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for result in run_families(
            families,
            options.folder or Path(scratch),
            process_count=options.processes,
            targets=options.targets,
        ):
            print(f"{result.name}: {'no' if result.says_no else 'yes'}", file=sys.stderr, flush=True)
            results.append(result)
    print(make_table(results))
    if options.json:
        _write(results, options.json)
    if options.docs:
        results = _add_committed(results)
        _write(results, _RESULTS)
        _PAGE.write_text(make_page(results, _versions()))


def _add_committed(results: list[FamilyResult]) -> list[FamilyResult]:
    """The results with those that are committed of families that were not run, in the order of the table."""
    committed = json.loads(_RESULTS.read_text())["families"] if _RESULTS.exists() else []
    found = {one.name: one for one in [*map(FamilyResult.model_validate, committed), *results]}
    return [found[family.name] for family in FAMILIES if family.name in found]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _write(results: list[FamilyResult], path: Path) -> None:
    content = {"versions": _versions(), "families": [result.model_dump() for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
