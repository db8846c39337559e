"""docs/families.md: the table of families, with what each column means."""

from collections.abc import Sequence

from benchmarks.families.results import FamilyResult, make_table

_PAGE = """# What works: model families

A tiny random model of each family goes through all that the service does with a base model, by the same
code: preflight, two optimizer steps of a job with the defaults, the verification of the adapter, an answer by
the engine, and the comparison of that answer with PEFT's. Each is tried over 4-bit and over unquantized
weights; a cell names both where they differ.

{count} of {total} families pass everything ({versions}, on a CPU).

- **Preflight**: the job is accepted. What it refuses, and how it says that the adapter will be served, is
  compared with what happens then.
- **Trains**: two steps of the recipe's defaults: rank 64, dropout 0.1, four rows in a batch, PEFT's target
  modules or all linear layers.
- **Verified**: loaded afresh, the adapter changes the model's output, and prompts are those of training.
- **Served**: `/generate` answers with the adapter. *paged* batches many requests; *general* is
  transformers and PEFT, more slowly.
- **Equal to PEFT**: the same greedy tokens as PEFT's, with log-probabilities within 1% of what the adapter
  changes.

This says that an architecture works; [memory and time](training-speed.md) of a real model are another matter.

{table}
`python -m benchmarks.families --docs` writes this page and `benchmarks/results/families.json`;
`--families NAME` tries one family.
"""


def make_page(results: Sequence[FamilyResult], versions: dict[str, str]) -> str:
    """The page in Markdown. `versions`: of the libraries that the results depend on, by name."""
    return _PAGE.format(
        count=sum(not result.says_no for result in results),
        total=len(results),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        table=make_table(results),
    )
