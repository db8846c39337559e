import csv
import json
from pathlib import Path

import pytest

from app.core.evaluations.answers import Answer, StoredGrade
from app.core.evaluations.queue import RecordedAnswer, evaluation_queue
from app.core.evaluations.results import read_graded, summarize
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.cli.conftest import Run, json_of
from tests.core.evaluations.evaluations import ROWS

BASE = "owner/model"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A JSON file of an evaluation."""
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"rows": ROWS, "models": [BASE], "name": "sums"}))
    return str(path)


@pytest.fixture
def evaluation(run: Run, adapter: str, file: str) -> str:
    """The id of an evaluation that waits."""
    made = run("evaluations", "create", file, "-m", BASE, "-m", adapter, "-g", "exact")
    assert made.exit_code == 0, made.stderr
    return made.stdout.strip()


def work(database: Database, *, fails: bool = False) -> None:
    """A worker runs the oldest evaluation: the base is wrong about the first row."""
    with database.transaction() as session:
        lease = evaluation_queue.claim(session, lease_seconds=30, max_attempts=3)
        assert lease is not None
        for number, model, text in ((0, 0, "3"), (0, 1, "2"), (1, 0, "4"), (1, 1, "4")):
            passed = text == ROWS[number]["reference"]
            grade = StoredGrade(score=float(passed), passed=passed)
            answer = RecordedAnswer(number, model, Answer(text=text, finish_reason="stop"), [grade])
            evaluation_queue.record(session, lease, answers=[answer])
        if fails:
            return evaluation_queue.fail(session, lease, WorkFailure("evaluation_failed", "No engine."))
        found = summarize(lease.spec, read_graded(session, lease.key))
        evaluation_queue.finish(session, lease, found.model_dump(mode="json"))


def test_an_evaluation_is_made_of_a_file_and_options_and_shown(
    run: Run, evaluation: str, adapter: str, database: Database
) -> None:
    listed = json_of(run("evaluations", "list", "--json"))["data"]
    assert [model["label"] for model in listed[0]["spec"]["models"]] == [BASE, "helper"]
    assert "sums" in run("evaluations", "list", "--state", "queued").stdout
    work(database)
    shown = run("evaluations", "show", evaluation, "--wait")
    assert shown.exit_code == 0
    assert "100% (34% to 100%)" in shown.stdout
    assert "1/1/0" in shown.stdout
    assert "differ on 1 of 2 rows" in shown.stderr
    assert json_of(run("evaluations", "results", evaluation, "--json"))["disagreements"] == 1


def test_rows_are_shown_side_by_side_and_filtered(run: Run, evaluation: str, database: Database) -> None:
    work(database)
    rows = run("evaluations", "rows", evaluation, "--disagree").stdout
    assert "What is 1 + 1?" in rows
    assert "exact: 0 failed" in rows
    assert "exact: 1 passed" in rows
    assert "What is 2 + 2?" not in rows
    found = json_of(run("evaluations", "rows", evaluation, "--outcome", "won", "--model", "helper", "--json"))
    assert [row["number"] for row in found["data"]] == [0]
    unknown = run("evaluations", "rows", evaluation, "--outcome", "won", "--model", "nobody")
    assert unknown.exit_code != 0


def test_all_rows_are_written_as_csv(run: Run, evaluation: str, database: Database, tmp_path: Path) -> None:
    work(database)
    target = tmp_path / "rows.csv"
    assert run("evaluations", "results", evaluation, "-o", str(target)).exit_code == 0
    with target.open(newline="") as file:
        assert len(list(csv.reader(file))) == 3
    assert run("evaluations", "results", evaluation, "-o", str(target)).exit_code != 0


def test_waiting_for_a_failed_evaluation_fails_with_its_reason(
    run: Run, evaluation: str, database: Database
) -> None:
    work(database, fails=True)
    waited = run("evaluations", "wait", evaluation)
    assert waited.exit_code == 1
    assert "No engine." in waited.stderr
    # The results of what was graded are shown all the same.
    assert "helper" in waited.stdout


def test_a_cancelled_evaluation_is_retried_and_deleted(run: Run, evaluation: str) -> None:
    assert run("evaluations", "cancel", evaluation).stdout.split()[-1] == "cancelled"
    assert run("evaluations", "retry", evaluation).stdout.split()[-1] == "queued"
    assert run("evaluations", "rm", evaluation, "--yes").exit_code == 6
    run("evaluations", "cancel", evaluation)
    assert json_of(run("evaluations", "rm", evaluation, "--yes", "--json")) == {"deleted": [evaluation]}


def test_what_is_missing_is_named(run: Run, file: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    assert "--model" in run("evaluations", "create", str(empty)).stderr
    assert "exact, contains" in run("evaluations", "create", file, "-g", "similar").stderr
    empty.write_text("{")
    assert "is not JSON" in run("evaluations", "create", str(empty)).stderr


def test_graders_come_from_files_too(run: Run, file: str, tmp_path: Path) -> None:
    graders = tmp_path / "graders.json"
    graders.write_text(json.dumps([{"type": "json_schema", "name": "json", "schema": {"type": "object"}}]))
    made = json_of(run("evaluations", "create", file, "-g", str(graders), "-g", "contains", "--json"))
    assert made["grader_names"] == ["json", "contains"]
