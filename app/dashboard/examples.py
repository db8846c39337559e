"""The example dataset, and the job files of `examples/` as presets of the dashboard's form."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

_APP = Path(__file__).parents[1]
ROWS, JOB, QUESTIONS = "tunesmith-help.jsonl", "demo-job.json", "demo-questions.json"
# What a person chooses in the form, whatever the preset.
_OWN = ("name", "base_model", "dataset")


def find_folder() -> Path:
    """`app/examples` where a wheel was installed (setup.py says so), else the folder next to `app`."""
    installed = _APP / "examples"
    return installed if installed.is_dir() else _APP.parent / "examples"


@cache
def read_presets() -> list[dict[str, Any]]:
    """Every job file: `name`, `title` (its first sentence), and the settings of its `spec`."""
    return [_read(path) for path in sorted(find_folder().glob("*.yaml"))]


@cache
def read_first_run() -> dict[str, Any]:
    """The demo's job without a base model and a dataset, and the questions that are asked afterwards."""
    folder = find_folder()
    job = json.loads((folder / JOB).read_text())
    settings = {name: value for name, value in job.items() if name not in ("base_model", "dataset")}
    return {"rows": ROWS, "job": settings, "questions": json.loads((folder / QUESTIONS).read_text())}


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text()
    comment = " ".join(line.strip("# ") for line in text.splitlines()[:2] if line.startswith("#"))
    spec = json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))
    settings = {name: value for name, value in spec.items() if name not in _OWN}
    return {"name": path.stem, "title": comment.partition(". ")[0].rstrip(".") + ".", "spec": settings}
