"""The evaluation with which a job ends: in the job itself, in its log and in OpenAI's events."""

import math

import pytest
from fastapi.testclient import TestClient

from app.core.jobs import events, records as job_records
from app.core.storage.database import Database
from tests.factories import make_final_evaluation, make_job


def make_evaluated(database: Database, *, is_ended: bool = True, loss: float = 0.5, **spec: object) -> str:
    """A job whose first evaluation was repeated after an interruption."""
    with database.transaction() as session:
        job_id = make_job(session, **{"training": {"validation_split": 0.1}, **spec}).id
        last = make_final_evaluation().model_copy(update={"adapter_loss": loss})
        events.append(session, job_id, [make_final_evaluation(rows=1), last])
        if is_ended:
            job_records.request_cancel(session, job_id)
    return job_id


def test_a_job_that_has_ended_has_its_last_evaluation(client: TestClient, database: Database) -> None:
    job_id = make_evaluated(database)

    found = client.get(f"/jobs/{job_id}").json()["final_evaluation"]

    assert (found["step"], found["held_out"], found["base_loss"], found["adapter_loss"]) == (4, 30, 3.0, 0.5)
    assert [row["adapter_answer"] for row in found["rows"]] == ["Send POST 1.", "Send POST 2."]
    assert (found["rows"][0]["base_is_cut"], found["rows"][0]["adapter_is_cut"]) == (True, False)


@pytest.mark.parametrize(
    ("is_ended", "spec"),
    [(False, {}), (True, {"evaluate": False}), (True, {"training": {}})],
    ids=["not that far", "turned off", "nothing held out"],
)
def test_other_jobs_have_none(
    client: TestClient, database: Database, is_ended: bool, spec: dict[str, object]
) -> None:
    job_id = make_evaluated(database, is_ended=is_ended, **spec)

    assert client.get(f"/jobs/{job_id}").json()["final_evaluation"] is None


def test_a_list_of_jobs_does_not_say_that_there_is_none(client: TestClient, database: Database) -> None:
    make_evaluated(database)

    assert "final_evaluation" not in client.get("/jobs").json()["data"][0]


def test_a_loss_that_is_not_a_number_is_null(client: TestClient, database: Database) -> None:
    job_id = make_evaluated(database, loss=math.nan)

    assert client.get(f"/jobs/{job_id}").json()["final_evaluation"]["adapter_loss"] is None


def test_it_is_a_line_of_the_log_and_an_event_of_openai_s(client: TestClient, database: Database) -> None:
    job_id = make_evaluated(database)

    lines = client.get(f"/jobs/{job_id}/logs").text.splitlines()
    messages = [
        event["message"] for event in client.get(f"/v1/fine_tuning/jobs/{job_id}/events").json()["data"]
    ]

    expected = "step      4  2 rows held out  loss of the base model 3.0000, with the adapter 0.5000"
    assert any(line.endswith(expected) for line in lines)
    assert "2 rows held out: loss of the base model=3.00, of the fine-tuned model=0.50" in messages
