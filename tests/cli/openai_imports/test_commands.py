"""`tunesmith import openai` against the real API: nothing is sent without --submit."""

from pathlib import Path

import pytest

from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.cli.openai_imports.exported import (
    CHAT,
    STRING_CHECK,
    eval_definition,
    eval_run,
    job,
    write_json,
    write_rows,
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    write_rows(folder / "file-train.jsonl", CHAT)
    write_json(
        folder / "jobs.json", {"object": "list", "data": [job(), job("ftjob-9", training_file="gone")]}
    )
    write_json(folder / "eval.json", eval_definition(criteria=[STRING_CHECK]))
    write_json(folder / "run.json", eval_run())
    return folder


def test_without_submit_files_are_written_and_nothing_is_sent(
    run: Run, exported: Path, tmp_path: Path
) -> None:
    found = run("import", "openai", str(exported), "--base-model", "tiny", "-o", str(tmp_path / "out"))

    assert found.exit_code == 0, found.stderr
    assert [line.split("\t")[0] for line in found.stdout.splitlines()] == [
        "KIND",
        "dataset",
        "job",
        "evaluation",
    ]
    assert "the job ftjob-9: its file gone is not among the files" in " ".join(found.stderr.split())
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["evaluations/eval_1.json", "jobs/support-bot-ftjob-1.yaml"]
    assert json_of(run("jobs", "list", "--json"))["data"] == []


def test_a_written_job_file_can_be_submitted(run: Run, exported: Path, tmp_path: Path) -> None:
    run("import", "openai", str(exported), "--base-model", "owner/model", "-o", str(tmp_path / "out"))

    submitted = run("jobs", "submit", str(tmp_path / "out" / "jobs" / "support-bot-ftjob-1.yaml"), "--json")

    spec = json_of(submitted)["spec"]
    assert (spec["suffix"], spec["training"]["num_train_epochs"]) == ("support-bot", 4)


def test_submit_uploads_the_datasets_and_queues_the_jobs(
    run: Run, exported: Path, tmp_path: Path, database: Database
) -> None:
    found = run(
        "import",
        "openai",
        str(exported),
        "--base-model",
        "owner/model",
        "--submit",
        "-o",
        str(tmp_path),
        "--json",
    )

    made = [(one["kind"], one["name"]) for one in json_of(found)["made"]]
    assert made[:2] == [("dataset", str(exported / "file-train.jsonl")), ("job", "support-bot-ftjob-1")]
    assert made[2:] == [("evaluation", "eval_1")]
    (queued,) = json_of(run("jobs", "list", "--json"))["data"]
    assert queued["spec"]["metadata"]["openai_job"] == "ftjob-1"


def test_submit_needs_a_base_model(run: Run, exported: Path, tmp_path: Path) -> None:
    found = run("import", "openai", str(exported), "--submit", "-o", str(tmp_path))

    assert found.exit_code == 2
    assert "No base model is given for gpt-4o-mini-2024-07-18" in found.stderr


@pytest.mark.parametrize(
    "options", [["--base-model", "=x"], ["--file", "file-1"], ["--file", "a=/not/there"]]
)
def test_wrong_options_are_refused(run: Run, exported: Path, options: list[str]) -> None:
    assert run("import", "openai", str(exported), *options).exit_code == 2
