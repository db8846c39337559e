import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from fastapi.testclient import TestClient

from app.core.jobs import events, records as job_records
from app.core.jobs.events import AnyEventData, Checkpoint, Evaluation, Log, Metrics, Warn
from app.core.storage.database import Database
from tests.factories import make_job

SSE = {"accept": "text/event-stream"}


def metrics(step: int, loss: float, **fields: Any) -> Metrics:
    return Metrics(step=step, total_steps=100, epoch=step / 100, loss=loss, **fields)


def append(database: Database, job_id: str, *entries: AnyEventData) -> None:
    with database.transaction() as session:
        events.append(session, job_id, entries)


def end(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)


def parse(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Server-sent events as dicts; comments are left out."""
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if not line and event:
            yield event
            event = {}
        elif line and name:
            event[name] = json.loads(value) if name == "data" else value


@pytest.fixture
def job(database: Database) -> str:
    """A waiting job; its first event says so."""
    with database.transaction() as session:
        return make_job(session, name="helper").id


def test_events_come_in_pages(client: TestClient, database: Database, job: str) -> None:
    append(database, job, *(Log(message=f"line {number}") for number in range(4)))
    first = client.get(f"/jobs/{job}/events", params={"limit": 3}).json()
    assert [event["seq"] for event in first["data"]] == [1, 2, 3]
    rest = client.get(f"/jobs/{job}/events", params={"after": first["next"], "limit": 3}).json()
    assert [event["seq"] for event in rest["data"]] == [4, 5]
    assert rest["next"] is None
    assert rest["data"][1]["type"] == "log"
    assert rest["data"][1]["data"]["message"] == "line 3"


def test_a_stream_of_an_ended_job_gives_everything_and_ends(
    client: TestClient, database: Database, job: str
) -> None:
    append(database, job, Log(message="hello"), metrics(1, 2.5))
    end(database, job)
    answer = client.get(f"/jobs/{job}/events", headers=SSE)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = list(parse(answer.text.split("\n")))
    assert [(event["id"], event["event"]) for event in found] == [
        ("1", "state"),
        ("2", "log"),
        ("3", "metrics"),
        ("4", "state"),
    ]
    assert found[2]["data"]["data"]["loss"] == 2.5


@pytest.mark.parametrize(
    ("headers", "params"),
    [({"last-event-id": "2"}, {}), ({}, {"after": 2}), ({"last-event-id": "2"}, {"after": 9})],
)
def test_a_stream_is_resumed_without_a_gap(
    client: TestClient, database: Database, job: str, headers: dict[str, str], params: dict[str, int]
) -> None:
    append(database, job, *(Log(message=str(number)) for number in range(3)))
    end(database, job)
    answer = client.get(f"/jobs/{job}/events", headers={**SSE, **headers}, params=params)
    assert [event["id"] for event in parse(answer.text.split("\n"))] == ["3", "4", "5"]


def test_a_browser_that_has_seen_the_end_stops_reconnecting(
    client: TestClient, database: Database, job: str
) -> None:
    end(database, job)
    assert client.get(f"/jobs/{job}/events", headers={**SSE, "last-event-id": "2"}).status_code == 204
    assert client.get(f"/jobs/{job}/events", headers={**SSE, "last-event-id": "1"}).status_code == 200


def test_a_last_event_id_that_is_no_number_is_refused(client: TestClient, job: str) -> None:
    answer = client.get(f"/jobs/{job}/events", headers={**SSE, "last-event-id": "x"})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "last-event-id"


def test_a_live_stream_gives_events_as_they_are_recorded(
    live: httpx.Client, database: Database, job: str
) -> None:
    with live.stream("GET", f"/jobs/{job}/events", headers=SSE) as stream:
        found = parse(stream.iter_lines())
        assert next(found)["id"] == "1"
        append(database, job, Log(message="now"))
        assert next(found)["data"]["data"]["message"] == "now"
        end(database, job)
        assert [event["data"]["data"]["state"] for event in found] == ["cancelled"]


def test_a_followed_log_ends_with_the_job(live: httpx.Client, database: Database, job: str) -> None:
    with live.stream("GET", f"/jobs/{job}/logs", params={"follow": True}) as stream:
        lines = stream.iter_lines()
        assert "queued" in next(lines)
        append(database, job, Log(message="loading"))
        assert next(lines).endswith("log         loading")
        end(database, job)
        assert ["cancelled" in line for line in lines] == [True]


def test_a_log_is_aligned_lines_of_text(client: TestClient, database: Database, job: str) -> None:
    append(
        database,
        job,
        metrics(25, 1.23456, learning_rate=2e-4, grad_norm=0.5, tokens_per_second=812.4, eta_seconds=75),
        Evaluation(step=25, epoch=0.25, loss=1.5, token_accuracy=0.75),
        Checkpoint(step=25),
        Warn(code="truncated", message="3 rows were cut."),
        Log(message="two\nlines"),
    )
    answer = client.get(f"/jobs/{job}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert [line[21:] for line in answer.text.splitlines()] == [
        "state       queued",
        "metrics     step  25/100  epoch   0.25  loss   1.2346  lr 2.00e-04  grad   0.500"
        "      812 tokens/s  1:15 left",
        "eval        step     25  epoch   0.25  eval loss 1.5000  accuracy 0.750",
        "checkpoint  step     25  saved",
        "warning     3 rows were cut. (truncated)",
        "log         two",
        "            lines",
    ]


def test_the_loss_curve_of_a_resumed_job_has_each_step_once(
    client: TestClient, database: Database, job: str
) -> None:
    append(database, job, metrics(10, 3.0), metrics(20, 2.0), Log(message="resumed from step 10"))
    append(database, job, metrics(20, 2.1), Evaluation(step=20, epoch=1, loss=2.5), metrics(30, 1.5))
    points = client.get(f"/jobs/{job}/metrics").json()["data"]
    assert [(point["kind"], point["step"], point["loss"]) for point in points] == [
        ("train", 10, 3.0),
        ("train", 20, 2.1),
        ("eval", 20, 2.5),
        ("train", 30, 1.5),
    ]


@pytest.mark.parametrize(("params", "headers"), [({"format": "csv"}, {}), ({}, {"accept": "text/csv"})])
def test_the_loss_curve_comes_as_csv(
    client: TestClient, database: Database, job: str, params: dict[str, str], headers: dict[str, str]
) -> None:
    append(database, job, metrics(10, 3.0, learning_rate=1e-3, gpu_utilization_percent=97))
    answer = client.get(f"/jobs/{job}/metrics", params=params, headers=headers)
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["kind"], row["step"], row["loss"], row["learning_rate"]) == ("train", "10", "3.0", "0.001")
    assert (row["grad_norm"], row["gpu_utilization_percent"]) == ("", "97.0")


def test_a_loss_that_is_not_a_number_does_not_break_the_responses(
    client: TestClient, database: Database, job: str
) -> None:
    append(database, job, metrics(1, float("nan"), grad_norm=float("inf")), metrics(2, 1.0))
    assert client.get(f"/jobs/{job}/metrics").json()["data"][0]["loss"] is None
    assert client.get(f"/jobs/{job}/events").json()["data"][1]["data"]["grad_norm"] is None
    assert "nan" not in client.get(f"/jobs/{job}/metrics.svg").text
    assert "loss      nan" in client.get(f"/jobs/{job}/logs").text


def test_the_loss_curve_is_drawn(client: TestClient, database: Database, job: str) -> None:
    append(database, job, *(metrics(step, 4 - step / 10) for step in range(1, 21)))
    append(database, job, Evaluation(step=20, epoch=1, loss=2.2))
    answer = client.get(f"/jobs/{job}/metrics.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    texts = [element.text for element in ElementTree.fromstring(answer.text).iter() if element.text]
    assert {"Loss of helper", "training loss", "evaluation loss", "optimizer step", "loss"} <= set(texts)
    assert answer.text.count("<polyline") == 2


def test_a_job_without_metrics_is_drawn_too(client: TestClient, job: str) -> None:
    assert "No loss has been logged yet." in client.get(f"/jobs/{job}/metrics.svg").text
