from pathlib import Path

from app.cli.datasets.commands import _row_text
from app.cli.views import PreviewRowView, TokenView
from tests.cli.conftest import Run, json_of


def test_a_dataset_is_added_shown_and_removed(run: Run, rows: Path) -> None:
    dataset = json_of(run("datasets", "add", str(rows), "--json"))
    assert dataset["rows"] == 1
    assert json_of(run("datasets", "show", "rows.jsonl", "--json")) == dataset
    assert json_of(run("datasets", "rm", "rows.jsonl", "--yes", "--json")) == {"deleted": [dataset["id"]]}
    assert json_of(run("datasets", "list", "--json")) == {"data": []}


def test_columns_of_ones_own_are_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\nq,a\n")
    columns = ["--column", "prompt=question", "--column", "completion=answer"]
    assert json_of(run("datasets", "add", str(path), *columns, "--json"))["format"] == "prompt_completion"


def test_a_hub_dataset_is_named_and_need_not_be_waited_for(run: Run) -> None:
    options = [
        "--split",
        "test",
        "--column",
        "prompt=question",
        "--skip-problems",
        "--on-unused",
        "ignore",
        "--no-wait",
    ]
    dataset = json_of(run("datasets", "add", "--hub", "owner/name", *options, "--json"))
    assert (dataset["state"], dataset["hub"]["split"]) == ("fetching", "test")


def test_bad_rows_are_listed_by_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n')
    ended = run("datasets", "add", str(path))
    assert ended.exit_code == 1
    assert "line 2: " in ended.stderr


def test_fields_that_change_learning_are_refused_until_they_are_ignored(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "id": 1, "tools": [{"name": "f"}]}\n')
    ended = run("datasets", "add", str(path))
    assert ended.exit_code == 1
    assert "'tools' (tools) in 1 of 1 rows (line 1)" in ended.stderr
    assert "--on-unused ignore" in ended.stderr
    ended = run("datasets", "add", str(path), "--on-unused", "ignore")
    assert ended.exit_code == 0
    assert "tools (1 row, changes what is learned), id (1 row)" in ended.stdout
    assert "says more than is learned" in ended.stderr
    assert "tools (1 row," in run("datasets", "show", "rows.jsonl").stdout


def test_control_characters_of_a_name_never_reach_the_terminal(run: Run, rows: Path) -> None:
    run("datasets", "add", str(rows), "--name", "red\x1b[31m\x9bname")
    assert "red[31mname" in run("datasets", "list").stdout


def test_what_the_template_leaves_out_is_shown_above_the_row() -> None:
    tokens = [TokenView(text="How?", trained=False), TokenView(text=" So.", trained=True)]
    row = PreviewRowView(line=3, tokens=tokens, truncated=False, notices=["It leaves out 'x\x1b'."])
    assert _row_text(row, marked=True).plain == "── line 3\nIt leaves out 'x'.\nHow?« So.»\n"
