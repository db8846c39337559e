import json
from pathlib import Path

import httpx
import pytest

from app.core.jobs import events, records as job_records
from app.core.jobs.events import Metrics, SampleAnswer, Samples
from app.core.settings import Settings
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.factories import make_final_evaluation, make_job
from tests.fakes import ServerThread
from tests.pushes import REFUSED, RUN_URL, end_push, make_pushing_job

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


def test_what_a_job_waits_for_and_where_its_checkpoint_is_are_shown(run: Run, database: Database) -> None:
    with database.transaction() as session:
        job = make_job(session, name="large", base_model="owner/model")
        job.gpus, job.checkpoint_step, job.checkpoint_host, job.stored_checkpoint_step = 2, 40, "node-7", 30
    shown = [" ".join(line.split()) for line in run("jobs", "show", "large").stdout.splitlines()]
    assert "waits for a worker with 2 GPUs" in shown
    assert "checkpoint step 40, on node-7; in the artifact store: step 30" in shown


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


def test_a_job_that_learns_from_preferences_shows_its_rewards(run: Run, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session, name="polite", method="dpo").id
        points = [
            Metrics(step=step, total_steps=2, epoch=1, loss=0.5, reward_margin=step / 4, reward_accuracy=0.75)
            for step in (1, 2)
        ]
        events.append(session, job_id, points)
    shown = " ".join(run("jobs", "show", "polite").stdout.split())
    assert "method dpo" in shown
    assert "rewards margin 0.500, 75% right" in shown
    table = run("jobs", "metrics", "polite").stdout.splitlines()
    assert table[0].split()[-2:] == ["MARGIN", "RIGHT"]
    assert table[2].split()[-2:] == ["0.500", "75%"]
    assert "margin 0.500 right 75%" in " ".join(run("jobs", "logs", "polite").stdout.split())


def test_a_job_is_shown_with_base_model_and_adapter_on_rows_that_were_held_out(
    run: Run, database: Database
) -> None:
    with database.transaction() as session:
        job_id = make_job(session, name="evaluated", training={"validation_split": 0.1}).id
        events.append(session, job_id, [make_final_evaluation(rows=4)])
        job_records.request_cancel(session, job_id)

    found = run("jobs", "show", "evaluated")

    lines = [" ".join(line.split()) for line in found.stdout.splitlines()]
    assert "held out loss of the base model 3.0000, with the adapter 0.5000" in lines
    place = lines.index("How do I cancel job 1?")
    assert lines[place + 1] == "expected Send POST 1."
    assert lines[place + 2].startswith("base model I am a[2J")
    assert "adapter Send POST 1. (loss 0.5000)" in lines
    assert "How do I cancel job 4?" not in lines
    assert "has all 4 rows" in found.stderr
    assert len(json_of(run("jobs", "show", "evaluated", "--json"))["final_evaluation"]["rows"]) == 4


def test_a_job_file_names_trackers_and_a_repository_of_the_hub(run: Run, job_file: Path) -> None:
    job_file.write_text(
        JOB + "report_to: [wandb]\ntracking:\n  project: support\npush_to_hub:\n  repository: me/helper\n"
    )
    options = ["--set", "push_to_hub.tags=[support]", "--set", "tracking.run_name=first try"]
    spec = json_of(run("jobs", "submit", str(job_file), "--json", *options))["spec"]
    assert (spec["tracking"]["project"], spec["tracking"]["run_name"]) == ("support", "first try")
    assert (spec["push_to_hub"]["repository"], spec["push_to_hub"]["tags"]) == ("me/helper", ["support"])
    job_file.write_text(JOB + "push_to_hub:\n  repository: helper\n")
    assert "job.yaml, line 7: " in run("jobs", "submit", str(job_file)).stderr


def test_a_job_shows_its_runs_in_trackers_and_its_push(run: Run, database: Database) -> None:
    with database.transaction() as session:
        make_pushing_job(session)
    shown = [" ".join(line.split()) for line in run("jobs", "show", "helper").stdout.splitlines()]
    assert f"wandb {RUN_URL}, 0 points" in shown
    assert "mlflow not open yet, 0 points; MLflow lacks 3 points of the job." in shown
    assert any(line.startswith("hub me/helper, queued (export exp_") for line in shown)
    followed = run("jobs", "follow", "helper")
    assert followed.exit_code == 0
    assert f"wandb: {RUN_URL}, 0 points\n" in followed.stdout
    assert "tunesmith exports show exp_" in followed.stderr


def test_a_push_that_failed_is_shown_with_the_command_that_repeats_it(run: Run, database: Database) -> None:
    with database.transaction() as session:
        make_pushing_job(session)
        end_push(session, url=None)
    ended = run("jobs", "show", "helper")
    export_id = json_of(run("jobs", "show", "helper", "--json"))["push"]["export"]
    said = " ".join(ended.stderr.split())
    assert f"Not pushed to the Hub: {REFUSED.message} (hub_refused)" in said
    assert f"Hint: {REFUSED.hint} `tunesmith exports retry {export_id}` tries again." in said
    assert json_of(run("exports", "retry", export_id, "--json"))["state"] == "queued"
