"""Writes a plan: to files that can be submitted, and for the person."""

import json
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from app.cli.failures import UsageProblem
from app.cli.openai_imports.files import plain_name
from app.cli.openai_imports.jobs import JobDraft
from app.cli.openai_imports.plan import Plan
from app.cli.output import note, show_table


def show_plan(plan: Plan) -> None:
    """Write what would be made, and what is left out with the reason."""
    rows = [("dataset", str(file.path), f"{_count(file.rows, 'row')}, {file.kind}") for file in plan.datasets]
    rows += [("job", job.name, f"{_summary(job)}, from {job.source}") for job in plan.jobs]
    rows += [
        (
            "evaluation",
            one.name,
            f"{_count(len(one.body['rows']), 'row')}, {_count(len(one.body['graders']), 'grader')}",
        )
        for one in plan.evaluations
    ]
    rows += [("grader", name, str(grader["type"])) for name, grader in plan.graders.items()]
    show_table(("KIND", "NAME", "WHAT"), rows, empty="Nothing here can be moved.")
    notes = [(job.name, text) for job in plan.jobs for text in job.notes]
    notes += [(one.name, text) for one in plan.evaluations for text in one.notes]
    for name, text in notes:
        note(f"{name}: {text}", "yellow")
    if plan.left_out:
        note("Left out:", "bold")
        for one in plan.left_out:
            note(f"  {one.what}: {one.reason}")


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "datasets": [
            {"path": str(file.path), "kind": file.kind, "rows": file.rows} for file in plan.datasets
        ],
        "jobs": [
            {"name": job.name, "source": job.source, "spec": _body(job, Path()), "notes": job.notes}
            for job in plan.jobs
        ],
        "evaluations": [
            {"name": one.name, "source": one.source, "notes": one.notes} for one in plan.evaluations
        ],
        "graders": plan.graders,
        "left_out": [{"what": one.what, "reason": one.reason} for one in plan.left_out],
    }


def write_files(plan: Plan, folder: Path) -> list[Path]:
    """Write job files, evaluations and graders below a folder. Returns their paths. Raises UsageProblem."""
    written: list[Path] = []
    try:
        for job in plan.jobs:
            path = _make(folder / "jobs", job.name, ".yaml", written)
            with path.open("w") as file:
                file.write("".join(f"# {text}\n" for text in (f"From OpenAI's {job.source}.", *job.notes)))
                YAML().dump(_body(job, path.parent), file)
            written.append(path)
        bodies = [("evaluations", one.name, one.body) for one in plan.evaluations]
        bodies += [("graders", plain_name(name), grader) for name, grader in plan.graders.items()]
        for kind, name, body in bodies:
            path = _make(folder / kind, name, ".json", written)
            path.write_text(json.dumps(body, ensure_ascii=False, indent=2) + "\n")
            written.append(path)
    except OSError as error:
        raise UsageProblem(f"{folder} can't be written: {error.strerror}.") from None
    return written


def _make(folder: Path, name: str, suffix: str, written: Sequence[Path]) -> Path:
    """The path of a file that this run has not written yet, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{name}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
    return next(path for path in paths if path not in written)


def _body(job: JobDraft, folder: Path) -> dict[str, Any]:
    """The job file's fields, with paths of datasets from `folder`, as `jobs submit` takes them."""
    files = {"dataset": job.training, "validation_dataset": job.validation}
    paths = {
        name: os.path.relpath(file.path.absolute(), folder.absolute()) for name, file in files.items() if file
    }
    return {"base_model": job.spec["base_model"], **paths, **job.spec}


def _summary(job: JobDraft) -> str:
    method, epochs = job.spec.get("method", "sft"), job.spec["training"]["num_train_epochs"]
    return f"{method} on {job.spec['base_model']}, {_count(job.training.rows, 'row')}, epochs: {epochs}"


def _count(number: int, name: str) -> str:
    """How many things there are, as `1 row` or `2 rows`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"
