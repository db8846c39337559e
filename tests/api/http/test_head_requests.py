"""HEAD is answered wherever GET is: with the same status and headers, and without a body."""

import re
import threading

import httpx
import pytest

from app.core.jobs import events
from app.core.jobs.events import Log
from app.core.storage.database import Database
from tests.factories import make_job

# Differ from request to request.
_OWN = {"date", "x-request-id"}


def test_head_is_answered_wherever_get_is(live: httpx.Client) -> None:
    paths = live.get("/openapi.json").json()["paths"]
    gets = [re.sub(r"{\w+}", "x", path) for path, methods in paths.items() if "get" in methods]
    assert len(gets) > 20
    for path in [*gets, "/", "/docs", "/openapi.json"]:
        whole, head = live.get(path), live.head(path)
        assert (path, head.status_code, head.content) == (path, whole.status_code, b"")
        if path != "/metrics":
            shown = [{n: v for n, v in one.headers.items() if n not in _OWN} for one in (head, whole)]
            assert shown[0] == shown[1], path


def test_head_does_not_answer_what_only_post_does(live: httpx.Client) -> None:
    answer = live.head("/v1/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert live.post("/jobs/x/events").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "headers"), [("logs?follow=true", {}), ("events", {"accept": "text/event-stream"})]
)
def test_head_does_not_follow_a_stream(
    live: httpx.Client, database: Database, path: str, headers: dict[str, str]
) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        events.append(session, job_id, [Log(message="So far.")])
    before = threading.active_count()
    for _ in range(3):
        answer = live.head(f"/jobs/{job_id}/{path}", headers=headers, timeout=20)
        assert (answer.status_code, answer.content) == (200, b"")
    assert live.get("/health").status_code == 200
    assert threading.active_count() <= before + 5


def test_requests_are_counted_as_head_and_by_the_status_that_was_sent(live: httpx.Client) -> None:
    live.head("/jobs")
    live.post("/v1/chat/completions", json={"model": "x"})
    lines = live.get("/metrics").text.splitlines()
    assert 'tunesmith_requests_total{method="HEAD",route="/jobs",status="200"} 1.0' in lines
    assert 'tunesmith_requests_total{method="POST",route="/v1/chat/completions",status="400"} 1.0' in lines
    assert not [line for line in lines if 'status="422"' in line]
