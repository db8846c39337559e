import json
from pathlib import Path

import httpx
import pytest

from app.core.jobs import events
from app.core.jobs.events import SampleAnswer, Samples
from app.core.settings import Settings
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.factories import make_job
from tests.fakes import ServerThread

JOB = """\
# A comment.
base_model: owner/model
dataset: rows.jsonl
training:
  learning_rate: 2e-4
"""


@pytest.fixture
def job_file(tmp_path: Path, rows: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize("path", sorted(Path("examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_accepted_by_the_api(run: Run, settings: Settings, path: Path) -> None:
    (settings.models_folder / "SmolLM2-135M-Instruct").mkdir(parents=True)
    (settings.models_folder / "SmolLM2-135M-Instruct" / "config.json").write_text("{}")
    job = json_of(run("jobs", "submit", str(path), "--json"))
    assert job["state"] == "queued"
    assert job["spec"]["dataset"].startswith("ds_")


def test_the_recipe_example_is_the_default_of_every_setting(run: Run, tmp_path: Path, rows: Path) -> None:
    bare = tmp_path / "bare.json"
    bare.write_text('{"base_model": "owner/model", "dataset": "rows.jsonl"}')
    default = json_of(run("jobs", "submit", str(bare), "--json"))["spec"]
    recipe = json_of(run("jobs", "submit", "examples/recipe.yaml", "--json"))["spec"]
    assert all(recipe[part] == default[part] for part in ("lora", "quantization", "training"))


def test_set_goes_before_the_file_and_makes_groups(run: Run, job_file: Path) -> None:
    overrides = ["--set", "training.learning_rate=1e-4", "--set", "lora.target_modules=[q_proj]"]
    spec = json_of(run("jobs", "submit", str(job_file), "--json", *overrides))["spec"]
    assert spec["training"]["learning_rate"] == 1e-4
    assert spec["lora"]["target_modules"] == ["q_proj"]


def test_submitting_twice_uploads_the_dataset_once(run: Run, job_file: Path, api: ServerThread) -> None:
    specs = [json_of(run("jobs", "submit", str(job_file), "--json"))["spec"] for _ in range(2)]
    assert specs[0]["dataset"] == specs[1]["dataset"]
    assert len(httpx.get(f"{api.url}/datasets").json()["data"]) == 1


def test_a_dataset_that_was_deleted_is_uploaded_again(run: Run, rows: Path, api: ServerThread) -> None:
    first = json_of(run("datasets", "add", str(rows), "--json"))["id"]
    httpx.delete(f"{api.url}/datasets/{first}").raise_for_status()
    assert json_of(run("datasets", "add", str(rows), "--json"))["id"] != first


def test_a_dataset_may_be_named(run: Run, rows: Path) -> None:
    dataset = json_of(run("datasets", "add", str(rows), "--name", "help", "--json"))
    job = run("jobs", "submit", "-", "--json", stdin="base_model: owner/model\ndataset: help\n")
    assert json_of(job)["spec"]["dataset"] == dataset["id"]


def test_a_dataset_that_is_neither_file_nor_name_is_an_error_with_its_line(run: Run, job_file: Path) -> None:
    job_file.write_text(JOB.replace("rows.jsonl", "gone.jsonl"))
    ended = run("jobs", "submit", str(job_file))
    assert ended.exit_code == 5
    assert "job.yaml, line 3: There is neither a file nor a dataset 'gone.jsonl'" in ended.stderr


def test_an_unknown_field_is_the_apis_error_with_its_line_and_hint(run: Run, job_file: Path) -> None:
    job_file.write_text(JOB.replace("learning_rate", "learning_rat"))
    ended = run("jobs", "submit", str(job_file))
    assert ended.exit_code == 1
    assert ended.stdout == ""
    assert "job.yaml, line 5: There is no field training.learning_rat." in ended.stderr
    assert "Hint: Did you mean `learning_rate`?" in ended.stderr


def test_an_error_in_set_names_it(run: Run, job_file: Path) -> None:
    ended = run("jobs", "submit", str(job_file), "--set", "training.learning_rate=-1", "--json")
    assert ended.exit_code == 1
    assert ended.stdout == ""
    error = json.loads(ended.stderr.splitlines()[-1])["error"]
    assert error["param"] == "training.learning_rate"
    assert error["message"].startswith("--set training.learning_rate=-1: ")


def test_jobs_are_listed_shown_and_changed(run: Run, database: Database, rows: Path) -> None:
    dataset = json_of(run("datasets", "add", str(rows), "--json"))["id"]
    with database.transaction() as session:
        job_id = make_job(session, name="helper", dataset=dataset).id
    assert [job["id"] for job in json_of(run("jobs", "list", "--json"))["data"]] == [job_id]
    assert json_of(run("jobs", "list", "--state", "failed", "--json")) == {"data": []}
    assert json_of(run("jobs", "show", "helper", "--json"))["id"] == job_id
    states = [
        json_of(run("jobs", verb, "helper", "--json"))["state"] for verb in ("pause", "resume", "cancel")
    ]
    assert states == ["paused", "queued", "cancelled"]
    assert json_of(run("jobs", "retry", job_id, "--json"))["state"] == "queued"


def test_a_change_that_the_state_does_not_allow_is_a_conflict(run: Run, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    assert run("jobs", "resume", job_id).exit_code == 6


def test_following_a_failed_job_ends_with_status_1(run: Run, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session, name="helper").id
    run("jobs", "cancel", job_id)
    followed = run("jobs", "follow", job_id, "--json")
    assert followed.exit_code == 1
    assert json.loads(followed.stdout)["state"] == "cancelled"
    assert "queued" in followed.stderr


def test_logs_are_lines_of_text_or_of_json(run: Run, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    assert "state       queued" in run("jobs", "logs", job_id).stdout
    lines = run("jobs", "logs", job_id, "--json").stdout.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["state"]


def test_a_job_that_is_not_there_is_not_found(run: Run) -> None:
    assert run("jobs", "show", "job_0000000000000000").exit_code == 5
    assert run("jobs", "show", "nobody").exit_code == 5


def test_a_job_file_s_rows_with_unused_fields_name_the_command_that_takes_them(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tools.jsonl").write_text('{"text": "a", "tools": [1]}\n')
    path = tmp_path / "job.yaml"
    path.write_text("base_model: owner/model\ndataset: tools.jsonl\n")
    ended = run("jobs", "submit", str(path))
    assert ended.exit_code == 1
    hint = " ".join(ended.stderr.split())
    assert "--on-unused ignore. Use `tunesmith datasets add" in hint
    assert "name the dataset's id in the job" in hint


def test_notes_are_added_and_removed(run: Run, database: Database) -> None:
    with database.transaction() as session:
        make_job(session, name="mine", metadata={"team": "sales"})
    assert json_of(run("jobs", "note", "mine", "team=", "why=first try", "--json"))["spec"]["metadata"] == {
        "why": "first try"
    }
    assert "first try" in run("jobs", "show", "mine").stdout
    assert run("jobs", "note", "mine", "nothing").exit_code == 2


@pytest.fixture
def sampled(database: Database) -> str:
    """A job with the answers of three steps; those of the second one are its adapter's."""
    with database.transaction() as session:
        job_id = make_job(session, name="helper").id
        for step, answer, is_final in (
            (0, "No idea.", False),
            (10, "POST.", False),
            (20, "Send POST.", True),
        ):
            one = SampleAnswer(prompt="How\x1b[2J so?", expected="Send it.", answer=answer, is_cut=False)
            entry = Samples(step=step, epoch=1, is_final=is_final, seconds=1, answers=[one])
            events.append(session, job_id, [entry])
    return job_id


@pytest.mark.parametrize(("options", "steps"), [([], []), (["--all"], ["step 10           POST."])])
def test_sample_answers_are_shown_before_and_after(
    run: Run, sampled: str, options: list[str], steps: list[str]
) -> None:
    lines = run("jobs", "samples", "helper", *options).stdout.splitlines()
    assert lines[0] == "How[2J so?"
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "expected Send it.",
        "before No idea.",
        *(" ".join(step.split()) for step in steps),
        "adapter, step 20 Send POST.",
    ]


def test_sample_answers_are_json_of_every_step(run: Run, sampled: str) -> None:
    found = json_of(run("jobs", "samples", sampled, "--json"))["data"]
    assert [(one["step"], one["is_final"]) for one in found] == [(0, False), (10, False), (20, True)]


def test_a_job_without_sample_answers_says_what_makes_some(run: Run, database: Database) -> None:
    with database.transaction() as session:
        make_job(session, name="plain")
    assert "training.sample_prompts" in run("jobs", "samples", "plain").stderr
