"""Sample answers of a job in pages, and those before and after training next to each other."""

import pytest
from fastapi.testclient import TestClient

from app.core.jobs.events import Log, SampleAnswer, Samples
from app.core.storage.database import Database
from tests.api.jobs.test_history import append
from tests.factories import make_job

EXPECTED = "Send POST."


def samples(step: int, *answers: str, is_final: bool = False) -> Samples:
    found = [
        SampleAnswer(prompt=f"Prompt {place}", expected=EXPECTED, answer=answer, is_cut=False)
        for place, answer in enumerate(answers)
    ]
    return Samples(step=step, epoch=step / 10, is_final=is_final, seconds=0.5, answers=found)


@pytest.fixture
def job(database: Database) -> str:
    with database.transaction() as session:
        return make_job(session, name="helper").id


def test_samples_come_by_step_in_pages_and_each_step_once(
    client: TestClient, database: Database, job: str
) -> None:
    append(database, job, samples(0, "a"), samples(10, "b"), samples(20, "c"), Log(message="resumed"))
    append(database, job, samples(20, "d"), samples(30, "e"), samples(30, "e", is_final=True))

    first = client.get(f"/jobs/{job}/samples", params={"limit": 3}).json()
    rest = client.get(f"/jobs/{job}/samples", params={"limit": 3, "after": first["next"]}).json()

    found = [*first["data"], *rest["data"]]
    assert [(one["step"], one["answers"][0]["answer"]) for one in found] == [
        (0, "a"),
        (10, "b"),
        (20, "d"),
        (30, "e"),
    ]
    assert [one["is_final"] for one in found] == [False, False, False, True]
    assert (first["next"], rest["next"]) == (20, None)
    assert found[1]["epoch"] == 1.0
    assert found[1]["at"]


def test_answers_before_and_after_training_are_next_to_each_other(
    client: TestClient, database: Database, job: str
) -> None:
    # The adapter of an earlier step is saved: the training stopped early.
    append(database, job, samples(0, "a", "b"), samples(10, "c", "d"), samples(20, "e", "f"))
    append(database, job, samples(10, "c", "d", is_final=True))

    found = client.get(f"/jobs/{job}/comparison").json()

    assert (found["before_step"], found["after_step"]) == (0, 10)
    assert found["data"] == [
        {"prompt": "Prompt 0", "expected": EXPECTED, "before": "a", "after": "c"},
        {"prompt": "Prompt 1", "expected": EXPECTED, "before": "b", "after": "d"},
    ]


def test_a_job_that_runs_has_answers_before_training_alone(
    client: TestClient, database: Database, job: str
) -> None:
    assert client.get(f"/jobs/{job}/comparison").json() == {
        "before_step": None,
        "after_step": None,
        "data": [],
    }
    append(database, job, samples(0, "a"), samples(10, "b"))

    found = client.get(f"/jobs/{job}/comparison").json()

    assert (found["before_step"], found["after_step"]) == (0, None)
    assert [(one["before"], one["after"]) for one in found["data"]] == [("a", None)]


def test_other_jobs_have_no_part_in_it(client: TestClient, database: Database, job: str) -> None:
    with database.transaction() as session:
        other = make_job(session).id
    append(database, other, samples(0, "a", is_final=True))

    assert client.get(f"/jobs/{job}/samples").json() == {"data": [], "next": None}
    assert client.get(f"/jobs/{job}/comparison").json()["data"] == []
    assert client.get("/jobs/job_0000000000000000/samples").status_code == 404
    assert client.get("/jobs/job_0000000000000000/comparison").status_code == 404


def test_samples_are_a_few_lines_of_the_log(client: TestClient, database: Database, job: str) -> None:
    append(database, job, samples(10, "first\nline " + "x" * 100))

    lines = client.get(f"/jobs/{job}/logs").text.splitlines()

    assert lines[1][21:] == "samples     step     10  sample answers"
    assert lines[2].strip() == "Prompt 0 → first line " + "x" * 48 + "…"


def test_openai_s_events_say_that_there_are_samples(client: TestClient, database: Database, job: str) -> None:
    append(database, job, samples(10, "a"))

    found = client.get(f"/v1/fine_tuning/jobs/{job}/events").json()["data"]

    assert found[0]["message"] == "Step 10: sample answers generated"


@pytest.mark.parametrize("prompts", [[], [""], ["x"] * 9, "some", ["x" * 4001]])
def test_prompts_beyond_the_limits_are_refused(client: TestClient, prompts: object) -> None:
    body = {"base_model": "owner/model", "dataset": "ds_1", "training": {"sample_prompts": prompts}}

    answer = client.post("/jobs", json=body)

    assert answer.status_code == 422
    assert answer.json()["error"]["param"].startswith("training.sample_prompts")
