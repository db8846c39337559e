"""Routes of evaluations: what is asked for, what is shown, and what is refused."""

import csv
import io
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.evaluations import records
from app.core.evaluations.answers import Answer, AnswerError, StoredGrade
from app.core.evaluations.queue import EvaluationLease, RecordedAnswer, evaluation_queue
from app.core.evaluations.results import read_graded, summarize
from app.core.keys import records as keys, usage
from app.core.keys.records import KeyLimits
from app.core.keys.usage import Amounts, UsageKey
from app.core.storage import clock
from app.core.storage.database import Database
from tests.core.evaluations.evaluations import GRADER, ROWS
from tests.factories import make_adapter, make_dataset, make_job

BASE = "owner/model"


@pytest.fixture
def adapter(services: Services) -> str:
    with services.database.transaction() as session:
        return make_adapter(session, base_model=BASE).id


def request_of(**fields: Any) -> dict[str, Any]:
    return {"rows": ROWS, "models": [BASE, "helper"], "graders": [GRADER], **fields}


def submit(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/evaluations", json=request_of(**fields))
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/evaluations/{made['id']}"
    return made


def refusal(client: TestClient, body: dict[str, Any]) -> tuple[int, str | None]:
    answer = client.post("/evaluations", json=body)
    return answer.status_code, answer.json()["error"]["param"]


def claim(database: Database) -> EvaluationLease:
    with database.transaction() as session:
        lease = evaluation_queue.claim(session, lease_seconds=30, max_attempts=3)
    assert lease is not None
    return lease


def record(database: Database, lease: EvaluationLease, texts: dict[tuple[int, int], str | None]) -> None:
    answers = []
    for (number, model), text in texts.items():
        error = None if text is not None else AnswerError(code="context_length_exceeded", message="Too long.")
        score = None if text is None else float(text == ROWS[number]["reference"])
        grade = StoredGrade(score=score, passed=None if score is None else score > 0)
        answers.append(RecordedAnswer(number, model, Answer(text=text or "", error=error), [grade]))
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=answers)


@pytest.fixture
def finished(client: TestClient, services: Services, adapter: str) -> str:
    """The path of an evaluation: the base is right once, the adapter twice."""
    made = submit(client)
    lease = claim(services.database)
    record(services.database, lease, {(0, 0): "3", (0, 1): "2", (1, 0): "4", (1, 1): "4"})
    with services.database.transaction() as session:
        found = summarize(lease.spec, read_graded(session, lease.key))
        evaluation_queue.finish(session, lease, found.model_dump(mode="json"))
    return f"/evaluations/{made['id']}"


def test_an_evaluation_is_queued_listed_and_shown(client: TestClient, adapter: str) -> None:
    made = submit(client, name="sums")
    assert (made["state"], made["name"], made["rows"], made["total"]) == ("queued", "sums", 2, 4)
    assert [model["label"] for model in made["spec"]["models"]] == [BASE, "helper"]
    assert made["spec"]["models"][1]["adapter"] == adapter
    assert client.get(f"/evaluations/{made['id']}").json() == made
    assert client.get("/evaluations").json()["data"] == [made]
    assert client.get("/evaluations?search=SUM&state=queued").json()["data"] == [made]
    assert client.get("/evaluations?state=failed").json()["data"] == []


def test_the_same_key_makes_one_evaluation(client: TestClient, adapter: str) -> None:
    key = {"Idempotency-Key": "once"}
    first, second = (client.post("/evaluations", json=request_of(), headers=key) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert len(client.get("/evaluations").json()["data"]) == 1


def test_the_base_model_has_the_weights_that_the_adapter_was_trained_on(
    client: TestClient, services: Services
) -> None:
    with services.database.transaction() as session:
        make_adapter(session, base_model=BASE, quantization={"load_in_4bit": False})
    models = submit(client)["spec"]["models"]
    assert models[0]["quantization"] == models[1]["quantization"]
    assert not models[0]["quantization"]["load_in_4bit"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"models": ["helper", "nobody"]}, 404, "models.1"),
        ({"models": [{"adapter": "nobody"}]}, 404, "models.0"),
        ({"models": [{"adapter": "helper", "base_model": BASE}]}, 422, "models.0"),
        ({"models": []}, 422, "models"),
        ({"rows": [{"question": "?"}]}, 422, "rows.0"),
        ({"dataset": "ds_0000000000000000"}, 422, None),
        ({"baseline": "gpt"}, 422, "baseline"),
        ({"generate": False}, 422, None),
        ({"graders": [GRADER | {"operation": "similar"}]}, 422, "graders.0.operation"),
        ({"graders": [GRADER | {"reference": "{{row.x}}"}]}, 422, "graders.0.reference"),
        ({"graders": [{"type": "python", "source": "def grade(sample, item): return 1"}]}, 422, "grader"),
        ({"limit": 0}, 422, "limit"),
    ],
)
def test_what_can_t_be_evaluated_is_refused_with_its_name(
    client: TestClient, adapter: str, change: dict[str, Any], status: int, param: str | None
) -> None:
    assert refusal(client, request_of(**change)) == (status, param)


def test_a_judge_that_is_not_there_is_refused(client: TestClient, adapter: str) -> None:
    judge = {"type": "score_model", "model": "gpt-5", "input": [{"role": "user", "content": "Grade it."}]}
    answer = client.post("/evaluations", json=request_of(graders=[judge]))
    assert answer.json()["error"]["param"] == "graders.0.model"
    assert "TUNESMITH_JUDGE_URL" in answer.json()["error"]["hint"]


def test_the_rows_that_a_job_held_out(
    client: TestClient, services: Services, adapter: str, tmp_path: Path
) -> None:
    with services.database.transaction() as session:
        dataset = make_dataset(session, services.store, tmp_path)
        job = make_job(session, dataset=dataset.id, training={"validation_split": 0.2})
        without = make_job(session, dataset=dataset.id)
    made = submit(client, rows=None, held_out_of=job.id)
    assert (made["dataset"], made["rows"], made["spec"]["limit"]) == (dataset.id, None, 200)
    assert client.delete(f"/datasets/{dataset.id}").status_code == 409
    assert client.get(f"/evaluations?job={job.id}").json()["data"] == [made]
    assert refusal(client, request_of(rows=None, held_out_of=without.id)) == (422, "held_out_of")
    assert refusal(client, request_of(rows=None, held_out_of="job_x")) == (404, "held_out_of")


def test_results_compare_every_model_with_the_baseline(client: TestClient, finished: str) -> None:
    found = client.get(f"{finished}/results").json()
    assert client.get(finished).json()["results"] == found
    tuned = found["models"][1]["graders"][0]
    assert (tuned["passed"], tuned["pass_rate"]["value"]) == (2, 1.0)
    assert tuned["against_baseline"] | {"difference": None} == {
        "wins": 1,
        "ties": 1,
        "losses": 0,
        "difference": None,
    }


def test_results_so_far_are_those_of_a_running_evaluation(
    client: TestClient, services: Services, adapter: str
) -> None:
    made = submit(client)
    record(services.database, claim(services.database), {(0, 0): "2"})
    found = client.get(f"/evaluations/{made['id']}/results").json()
    assert (found["rows"], found["models"][0]["answers"], found["models"][1]["answers"]) == (1, 1, 0)


def test_rows_have_the_answers_side_by_side(client: TestClient, finished: str) -> None:
    (row, *rest) = client.get(f"{finished}/rows").json()["data"]
    assert (row["prompt"], row["reference"], row["models_disagree"]) == ("What is 1 + 1?", "2", True)
    assert [(one["model"], one["text"], one["grades"]["exact"]["passed"]) for one in row["answers"]] == [
        (BASE, "3", False),
        ("helper", "2", True),
    ]
    assert len(rest) == 1


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [0, 1]),
        ("disagree=true", [0]),
        ("outcome=won&model=helper", [0]),
        ("outcome=lost", []),
        ("outcome=tied&model=helper&grader=exact", [1]),
        (f"outcome=failed&model={BASE}", [0]),
        ("outcome=failed&model=helper", []),
        ("outcome=error", []),
        ("search=2%20%2B%202", [1]),
        ("after=0", [1]),
    ],
)
def test_rows_are_filtered(client: TestClient, finished: str, query: str, numbers: list[int]) -> None:
    page = client.get(f"{finished}/rows?{query}").json()
    assert [row["number"] for row in page["data"]] == numbers
    assert page["next"] is None


def test_pages_of_rows_follow_each_other(client: TestClient, finished: str) -> None:
    page = client.get(f"{finished}/rows?limit=1").json()
    assert (len(page["data"]), page["next"]) == (1, 0)
    page = client.get(f"{finished}/rows?limit=1&after=0").json()
    assert (page["data"][0]["number"], page["next"]) == (1, None)
    answer = client.get(f"{finished}/rows?outcome=won&model=nobody")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "model")


def test_results_are_a_table_too(client: TestClient, finished: str) -> None:
    answer = client.get(f"{finished}/results.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    head, first, second = csv.reader(io.StringIO(answer.text))
    assert head == [
        *("row", "line", "prompt", "reference"),
        *(BASE, f"{BASE}: exact", f"{BASE}: error", "helper", "helper: exact", "helper: error"),
    ]
    assert first == ["0", "", "What is 1 + 1?", "2", "3", "0.0", "", "2", "1.0", ""]
    assert second[0] == "1"
    assert client.get(f"{finished}/results", headers={"accept": "text/csv"}).text == answer.text


def test_progress_is_streamed_until_the_end(live: httpx.Client, settings: Any) -> None:
    database = Database(settings.database_url)
    with database.transaction() as session:
        make_adapter(session, base_model=BASE)
    made = live.post("/evaluations", json=request_of()).json()
    lease = claim(database)
    seen: list[str] = []
    headers = {"accept": "text/event-stream"}
    with live.stream("GET", f"/evaluations/{made['id']}/events", headers=headers) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                seen.append(line)
            if len(seen) == 1 and line.startswith("data:"):
                record(database, lease, {(0, 0): "2", (0, 1): None})
            if '"done":2' in line and '"running"' in line:
                with database.transaction() as session:
                    evaluation_queue.finish(session, lease, {})
    database.close()
    assert '"failed":1' in seen[1]
    assert '"state":"succeeded"' in seen[-1]
    again = live.get(f"/evaluations/{made['id']}/events", headers={**headers, "last-event-id": "1"})
    assert again.status_code == 204


def test_a_cancelled_evaluation_is_retried_or_deleted(client: TestClient, adapter: str) -> None:
    path = f"/evaluations/{submit(client)['id']}"
    assert client.delete(path).status_code == 409
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client.post(f"{path}/retry").json()["state"] == "queued"
    assert client.delete("/adapters/helper").status_code == 409
    client.post(f"{path}/cancel")
    assert client.delete("/adapters/helper").status_code == 204
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


def test_followers_of_a_deleted_evaluation_are_let_go(live: httpx.Client, settings: Any) -> None:
    database = Database(settings.database_url)
    with database.transaction() as session:
        make_adapter(session, base_model=BASE)
    made = live.post("/evaluations", json=request_of()).json()
    has_begun = threading.Event()

    def follow() -> None:
        headers = {"accept": "text/event-stream"}
        with live.stream("GET", f"/evaluations/{made['id']}/events", headers=headers) as stream:
            for _ in stream.iter_lines():
                has_begun.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert has_begun.wait(20)
    with database.transaction() as session:
        records.cancel(session, made["id"])
        records.delete(session, made["id"])
    follower.join(20)
    database.close()
    assert not follower.is_alive()


def test_a_waiting_evaluation_gets_another_priority(client: TestClient, adapter: str) -> None:
    first, second = submit(client), submit(client, priority=-1)
    assert (first["queue_position"], second["queue_position"]) == (1, 2)

    changed = client.patch(f"/evaluations/{second['id']}", json={"priority": 5})
    assert changed.status_code == 200
    assert (changed.json()["queue_position"], changed.json()["spec"]["priority"]) == (1, 5)
    assert [one["queue_position"] for one in client.get("/evaluations").json()["data"]] == [1, 2]


def test_the_priority_of_a_running_evaluation_can_t_be_changed(
    client: TestClient, services: Services, adapter: str
) -> None:
    made = submit(client)
    claim(services.database)
    refused = client.patch(f"/evaluations/{made['id']}", json={"priority": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_waiting")


def test_an_evaluation_says_that_it_waits_for_tokens_of_its_key(
    client: TestClient, services: Services, adapter: str
) -> None:
    made = submit(client)
    with services.database.transaction() as session:
        key, _ = keys.create(session, "ci", limits=KeyLimits(tokens_per_day=10))
        records.get(session, made["id"]).key_id = key.id
        today = clock.now(session).date()
        usage.add(session, {UsageKey(key.id, today, "helper"): Amounts(prompt_tokens=10)})
        token = keys.create(session, "admin")[1]
    headers = {"authorization": f"Bearer {token}"}
    shown = client.get(f"/evaluations/{made['id']}", headers=headers).json()
    assert shown["waiting_for"] == "the next day (UTC): its key has spent its tokens of today"
    assert shown["state"] == "queued"
