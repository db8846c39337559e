"""Every stream escapes the line breaks of Unicode: a client that splits lines there reads whole events."""

import json

import httpx
import pytest

from app.api.http.server_sent_events import server_sent
from app.core.engine.messages import TokenDelta
from app.core.jobs import events
from app.core.jobs.events import Log
from app.core.storage.database import Database
from tests.factories import make_adapter, make_job
from tests.fakes import FINISHED, FakeEngine

BREAKS = "a\u2028b\u2029c\x85d é"


def read_data(text: str) -> list[str]:
    """The data of each event, the stream's lines taken as Python splits them."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def test_an_event_has_its_id_and_its_name() -> None:
    assert server_sent('{"é":1}', event="log", id=3) == 'id: 3\nevent: log\ndata: {"é":1}\n\n'
    assert server_sent("[DONE]") == "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "helper", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"model": "helper", "prompt": "x"}),
        ("/generate", {"adapter": "helper", "prompt": "x"}),
    ],
)
def test_line_breaks_of_unicode_split_no_event_of_an_answer(
    live: httpx.Client, engine: FakeEngine, database: Database, path: str, body: dict[str, object]
) -> None:
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
    engine.script = [TokenDelta(text=BREAKS), FINISHED]
    text = live.post(path, json=body | {"stream": True}).text
    found = [json.loads(data) for data in read_data(text) if data != "[DONE]"]
    assert BREAKS in json.dumps(found, ensure_ascii=False)


def test_line_breaks_of_unicode_split_no_event_of_a_job(live: httpx.Client, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        events.append(session, job_id, [Log(message=BREAKS)])
    live.post(f"/jobs/{job_id}/cancel")
    text = live.get(f"/jobs/{job_id}/events", headers={"accept": "text/event-stream"}).text
    assert BREAKS in [json.loads(data)["data"].get("message") for data in read_data(text)]
