"""What an answer of /generate holds besides text: thoughts and calls."""

import json
from typing import Any

from fastapi.testclient import TestClient

from app.core.engine.messages import Reply, ToolCallDelta
from app.core.storage.database import Database
from tests.api.openai.test_chat_answers import CALLING
from tests.fakes import FINISHED, FakeEngine

BODY: dict[str, Any] = {"base_model": "owner/model", "prompt": "Hi"}


def stream(client: TestClient, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    text = client.post("/generate", json={**BODY, "stream": True, **fields}).text
    lines = [event.split("\n") for event in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_an_answer_has_its_thoughts_and_calls(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    engine.register(database)
    engine.script = [*CALLING]
    answer = client.post("/generate", json=BODY).json()
    assert (answer["text"], answer["reasoning"], answer["finish_reason"]) == ("", "Which city?", "tool_calls")
    assert answer["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
        },
        {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "reasoning_tokens": 4}


def test_streamed_thoughts_and_calls_are_events_of_their_own(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    engine.register(database)
    engine.script = [*CALLING]
    events = stream(client)
    assert "".join(data["text"] for name, data in events if name == "reasoning") == "Which city?"
    calls = [data for name, data in events if name == "tool_call"]
    assert calls[0] == {"call": 0, "id": "call_1", "name": "weather", "arguments": calls[0]["arguments"]}
    assert "".join(data["arguments"] for data in calls if data["call"] == 0) == '{"city": "Rome"}'
    assert (events[-1][0], events[-1][1]["finish_reason"]) == ("done", "tool_calls")


def test_a_withdrawn_call_is_said_to_be_one(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    engine.register(database)
    replies: list[Reply] = [
        ToolCallDelta(index=0, id="call_1", name="weather"),
        ToolCallDelta(index=0, is_withdrawn=True),
    ]
    engine.script = [*replies, FINISHED]
    assert ("tool_call", {"call": 0, "withdrawn": True}) in stream(client, n=1)
    assert stream(client, n=2)[0][1]["index"] == 0


def test_an_answer_of_text_alone_has_no_field_of_thoughts_or_calls(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    engine.register(database)
    answer = client.post("/generate", json=BODY).json()
    assert not {"reasoning", "tool_calls"} & answer.keys()
    assert "reasoning_tokens" not in answer["usage"]
