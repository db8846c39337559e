import json
from pathlib import Path

from app.cli.datasets.commands import _row_text
from app.cli.datasets.views import PreviewAnswerView, PreviewRowView, TokenView
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


def test_a_previewed_comparison_shows_both_answers_with_their_tokens() -> None:
    asked, said = TokenView(text="How?", trained=False), TokenView(text="So.\x1b", trained=True)
    answers = [
        PreviewAnswerView(name="chosen", is_good=True, tokens=[said], token_count=1),
        PreviewAnswerView(name="rejected", is_good=False, tokens=[said], token_count=9),
    ]
    row = PreviewRowView(line=3, tokens=[asked], token_count=1, answers=answers, truncated=True)
    assert _row_text(row, marked=True).plain == (
        "── line 3 (cut)\nprompt, 1 token\nHow?\n"
        "chosen, 1 token\n«So.»\nrejected, 9 tokens, cut to 1\n«So.»\n"
    )
    labelled = row.model_copy(update={"answers": [answers[0].model_copy(update={"name": "completion"})]})
    assert "good answer, 1 token" in _row_text(labelled, marked=False).plain


def test_a_file_with_other_columns_is_refused_with_the_command_that_adds_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my faq.csv"
    path.write_text("id,question,answer\n1,q,a\n")
    ended = run("datasets", "add", str(path))
    assert ended.exit_code == 1
    assert "fit no known format" in ended.stderr
    assert (
        f"`tunesmith datasets add '{path}' --column instruction=question --column output=answer` adds it as"
        in ended.stderr
    )
    columns = ["--column", "instruction=question", "--column", "output=answer"]
    assert json_of(run("datasets", "add", str(path), *columns, "--json"))["format"] == "instruction"


def test_a_file_is_inspected(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_text("id,question,answer\n1,q\x1b[31m,a\n2,r,b\n")
    ended = run("datasets", "inspect", str(path))
    assert ended.exit_code == 0
    assert "question\tinstruction\tq[31m\tr\n" in ended.stdout
    assert "id\tnot used\t1\t2\n" in ended.stdout
    assert "  user: q[31m\n  assistant: a\n" in ended.stdout
    assert "--column instruction=question --column output=answer` adds it so" in ended.stderr
    swapped = ["--column", "prompt=answer", "--column", "completion=question"]
    assert "  prompt: a\n  completion: q" in run("datasets", "inspect", str(path), *swapped).stdout
    assert json_of(run("datasets", "inspect", str(path), "--json"))["columns"] == ["id", "question", "answer"]
    assert json_of(run("datasets", "list", "--json")) == {"data": []}


def test_comparisons_are_shown_with_both_answers(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "good", "rejected": "bad"}\n')
    ended = run("datasets", "inspect", str(path))
    assert "  prompt: q\n  chosen: good\n  rejected: bad\n" in ended.stdout
    assert "is read as comparisons" in ended.stderr
    assert f"`tunesmith datasets add {path}` adds it so" in " ".join(ended.stderr.split())
    alone = run(
        "datasets", "inspect", str(path), "--column", "instruction=prompt", "--column", "output=chosen"
    )
    assert "  chosen: good\n  rejected: bad\n" in alone.stdout
    assert "the answers are not compared: rejected ones are not used" in alone.stderr
    assert "--column output=chosen --on-unused ignore` adds it so" in alone.stderr


def test_rows_of_preferences_name_the_answers(run: Run, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "q"}]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    for name, row, shown in (
        (
            "pairs",
            {"prompt": asked, **answers},
            "  chosen, assistant: chosen\n  rejected, assistant: rejected\n",
        ),
        (
            "labels",
            {"prompt": asked, "completion": answers["rejected"], "label": False},
            "  bad answer, assistant: rejected\n",
        ),
        ("texts", {"prompt": "q", "completion": "a", "label": True}, "  prompt: q\n  good answer: a\n"),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row))
        assert run("datasets", "add", str(path)).exit_code == 0
        assert shown in run("datasets", "rows", path.name).stdout


def test_a_file_without_a_likely_meaning_refers_to_its_inspection(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a1,b1,c1\n1,2,3\n")
    ended = run("datasets", "add", str(path))
    assert "fit no known format" in ended.stderr
    assert f"`tunesmith datasets inspect {path}` shows its first rows" in " ".join(ended.stderr.split())
    assert "c1\tnot used\t3\n" in run("datasets", "inspect", str(path)).stdout


def test_rows_are_shown_with_thoughts_calls_and_results(run: Run, tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": [call]},
        {"role": "tool", "content": "yes", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It rains."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    run("datasets", "add", str(path))
    shown = run("datasets", "rows", "rows.jsonl").stdout
    assert shown == (
        "── line 1\n  user: Rain?\n  assistant thinks: I must look.\n"
        '  assistant calls: weather({"place": "Oslo"})\n  tool c1: yes\n  assistant: It rains.\n'
    )
    assert json_of(run("datasets", "rows", "rows.jsonl", "--json"))["data"][0]["line"] == 1
