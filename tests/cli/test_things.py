"""Datasets, adapters, models, and questions."""

import json
import zipfile
from pathlib import Path

import pytest

from app.core.engine.messages import Failed, TokenDelta
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.factories import make_adapter
from tests.fakes import FINISHED, FakeEngine


@pytest.fixture
def adapter(database: Database) -> str:
    with database.transaction() as session:
        return make_adapter(session).name


@pytest.fixture
def speaking(engine: FakeEngine, database: Database, adapter: str) -> FakeEngine:
    """An engine that answers "Hello" for the adapter."""
    engine.register(database)
    return engine


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
    options = ["--split", "test", "--column", "prompt=question", "--skip-problems", "--no-wait"]
    dataset = json_of(run("datasets", "add", "--hub", "owner/name", *options, "--json"))
    assert (dataset["state"], dataset["hub"]["split"]) == ("fetching", "test")


def test_bad_rows_are_listed_by_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n')
    ended = run("datasets", "add", str(path))
    assert ended.exit_code == 1
    assert "line 2: " in ended.stderr


def test_nothing_is_deleted_where_nobody_can_be_asked(run: Run, adapter: str) -> None:
    assert run("adapters", "rm", adapter).exit_code == 2
    assert json_of(run("adapters", "show", adapter, "--json"))["name"] == adapter


def test_control_characters_of_a_name_never_reach_the_terminal(run: Run, rows: Path) -> None:
    run("datasets", "add", str(rows), "--name", "red\x1b[31m\x9bname")
    assert "red[31mname" in run("datasets", "list").stdout


def test_an_adapter_is_downloaded_whole_and_never_over_another_file(
    run: Run, adapter: str, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    ArtifactStore(settings.artifacts_url).put_folder("adapters/ad_0000000000000000", folder)
    target = tmp_path / "helper.zip"
    assert json_of(run("adapters", "download", adapter, "-o", str(target), "--json"))["path"] == str(target)
    assert zipfile.ZipFile(target).namelist() == ["helper/adapter_model.safetensors"]
    assert run("adapters", "download", adapter, "-o", str(target)).exit_code == 2
    assert sorted(path.name for path in tmp_path.glob("helper*")) == ["helper.zip"]


def test_an_adapter_answers(run: Run, speaking: FakeEngine) -> None:
    assert run("generate", "helper", "Who?", "--system", "Be kind.", "--temperature", "0").stdout == "Hello\n"
    (asked,) = speaking.requests
    assert [(turn.role, turn.content) for turn in asked.messages or []] == [
        ("system", "Be kind."),
        ("user", "Who?"),
    ]
    assert asked.sampling.temperature == 0


def test_a_question_may_come_from_a_pipe_and_the_answer_be_json(run: Run, speaking: FakeEngine) -> None:
    assert json_of(run("generate", "helper", "--raw", "--json", stdin="Once\n"))["text"] == "Hello"
    assert speaking.requests[0].prompt == "Once"


def test_an_answer_that_breaks_off_is_an_error(run: Run, speaking: FakeEngine) -> None:
    speaking.script = [TokenDelta(text="Hel"), Failed(kind="unavailable", code="gpu_taken", message="Gone.")]
    ended = run("generate", "helper", "Who?")
    assert ended.exit_code == 1
    assert "Error: Gone." in ended.stderr


def test_an_adapter_with_a_slash_in_its_name_is_found(run: Run, database: Database) -> None:
    with database.transaction() as session:
        make_adapter(session, name="ft:owner/model:me::1")
    assert json_of(run("adapters", "show", "ft:owner/model:me::1", "--json"))["state"] == "ready"
    assert json_of(run("adapters", "rm", "ft:owner/model:me::1", "-y", "--json"))["deleted"]


def test_nobody_of_that_name_is_not_found(run: Run) -> None:
    assert run("generate", "nobody", "Who?").exit_code == 5


def test_a_chat_remembers_and_forgets(run: Run, speaking: FakeEngine) -> None:
    ended = run("chat", "helper", "--json", stdin="One?\nTwo?\n/reset\n\nThree?\n/exit\nFour?\n")
    assert [json.loads(line)["text"] for line in ended.stdout.splitlines()] == ["Hello"] * 3
    said = [[turn.content for turn in asked.messages or []] for asked in speaking.requests]
    assert said == [["One?"], ["One?", "Hello", "Two?"], ["Three?"]]
    assert ended.exit_code == 0


def test_models_are_listed(run: Run, settings: Settings) -> None:
    (settings.models_folder / "small").mkdir(parents=True)
    (settings.models_folder / "small" / "config.json").write_text("{}")
    assert "small\ton disk" in run("models").stdout
    assert [model["name"] for model in json_of(run("models", "--json"))["data"]] == ["small"]


def test_finished_is_said_when_an_answer_was_cut(run: Run, speaking: FakeEngine) -> None:
    speaking.script = [TokenDelta(text="Hi"), FINISHED.model_copy(update={"finish_reason": "length"})]
    assert "--max-new-tokens allows more" in run("generate", "helper", "Who?").stderr
