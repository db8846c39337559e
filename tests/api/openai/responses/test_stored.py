"""Stored responses: shown, continued, listed and deleted, through the official client."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.core.engine.messages import TokenDelta, ToolCallDelta
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.main import create_app
from tests.api.openai.responses.contract import CALL, check, check_list, create
from tests.api.openai.responses.test_create import CALLED
from tests.fakes import FINISHED, FakeEngine

HALF = "\ud83d"  # of a surrogate pair


def post(live: httpx.Client, **fields: Any) -> httpx.Response:
    """A request as it is sent by clients that escape what is not ASCII."""
    body = json.dumps({"model": "helper", "input": "Hi", **fields})
    return live.post("/v1/responses", content=body, headers={"content-type": "application/json"})


def roles(engine: FakeEngine) -> list[tuple[str, str]]:
    """The turns of the engine's last request."""
    return [(turn.role, turn.content) for turn in engine.requests[-1].messages or []]


def test_a_response_is_shown_as_it_was_returned(openai_client: openai.OpenAI) -> None:
    made = create(openai_client, metadata={"a": "b"}, tools=[CALL], text={"format": {"type": "json_object"}})
    shown = check(openai_client.responses.retrieve(made.id))
    assert shown.to_dict() == made.to_dict()


def test_a_response_that_is_not_stored_is_not_there(openai_client: openai.OpenAI, database: Database) -> None:
    made = create(openai_client, store=False)
    assert made.store is False
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.responses.retrieve(made.id)
    assert caught.value.code == "response_not_found"
    with database.snapshot() as session:
        assert session.scalars(select(tables.ResponseRow)).all() == []


def test_nothing_is_stored_where_the_settings_say_so(settings: Settings, engine: FakeEngine) -> None:
    settings.response_hours = 0
    with TestClient(create_app(settings)) as client:
        made = client.post("/v1/responses", json={"model": "helper", "input": "Hi"}).json()
        assert (made["status"], made["store"]) == ("completed", False)
        assert client.get(f"/v1/responses/{made['id']}").status_code == 404
        refused = client.post("/v1/responses", json={"model": "helper", "input": "Hi", "background": True})
        assert refused.json()["error"]["param"] == "background"


def test_a_conversation_goes_on_without_earlier_instructions(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    first = create(openai_client, input="One", instructions="Be brief.")
    second = create(openai_client, input="Two", previous_response_id=first.id, instructions="Be long.")
    third = create(openai_client, input="Three", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    turns = [
        ("user", "One"),
        ("assistant", "Hello"),
        ("user", "Two"),
        ("assistant", "Hello"),
        ("user", "Three"),
    ]
    assert roles(engine) == turns
    branch = create(openai_client, input="Other", previous_response_id=first.id, store=False)
    assert roles(engine) == [*turns[:2], ("user", "Other")]
    assert branch.status == "completed"


def test_an_agent_s_loop_sends_only_outputs(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.scripts = [
        [ToolCallDelta(index=0, id="call_1", name="show_job", arguments='{"id": "7"}'), CALLED],
        [TokenDelta(text="It is done."), FINISHED],
    ]
    first = create(openai_client, input="Is 7 done?", tools=[CALL])
    (call,) = first.output
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
    second = create(openai_client, input=output, tools=[CALL], previous_response_id=first.id)
    assert second.output_text == "It is done."
    user, calling, result = engine.requests[-1].messages or []
    assert (user.content, calling.tool_calls[0].arguments) == ("Is 7 done?", {"id": "7"})
    assert (result.role, result.name, result.tool_call_id) == ("tool", "show_job", "call_1")


def test_what_a_response_returned_may_be_sent_back(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.scripts = [
        [
            TokenDelta(text="One moment."),
            ToolCallDelta(index=0, id="call_1", name="show_job", arguments="{}"),
            CALLED,
        ]
    ]
    first = create(openai_client, tools=[CALL], store=False)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
    question = {"role": "user", "content": "Hi"}
    create(openai_client, input=[question, *first.output, output], store=False)
    as_dicts = [item.model_dump() for item in first.output]  # with fields of the client's, and nulls
    create(openai_client, input=[question, *as_dicts, output], store=False)
    assert engine.requests[1].messages == engine.requests[2].messages
    assert [role for role, _ in roles(engine)] == ["user", "assistant", "tool"]


def test_an_item_may_be_referred_to(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    made = create(openai_client, input="One")
    (sent,) = openai_client.responses.input_items.list(made.id).data
    references: Any = [
        {"type": "item_reference", "id": sent.id},
        {"id": made.output[0].id},
        {"role": "user", "content": "Two"},
    ]
    create(openai_client, input=references)
    assert roles(engine) == [("user", "One"), ("assistant", "Hello"), ("user", "Two")]


def test_a_reference_to_nothing_is_refused(live: httpx.Client) -> None:
    for item_id in ("msg_0000000000000000_0", "rs_1", HALF, "x" * 128, "resp_x_0"):
        answer = post(live, input=[{"type": "item_reference", "id": item_id}])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input.0.id")


def test_the_input_is_listed_with_what_came_before(openai_client: openai.OpenAI, live: httpx.Client) -> None:
    first = create(openai_client, input="One")
    second = create(openai_client, input="Two", previous_response_id=first.id)
    path = f"/v1/responses/{second.id}/input_items"
    page = check_list(live.get(path, params={"order": "asc"}).json())
    texts = [item["content"][0]["text"] for item in page["data"]]
    assert (texts, page["has_more"]) == (["One", "Hello", "Two"], False)
    assert page["data"][1]["id"] == first.output[0].id

    newest = check_list(live.get(path, params={"limit": 2}).json())
    assert [item["content"][0]["text"] for item in newest["data"]] == ["Two", "Hello"]
    assert newest["has_more"]
    rest = openai_client.responses.input_items.list(second.id, after=newest["last_id"])
    assert [item.content[0].text for item in rest.data] == ["One"]  # type: ignore[union-attr]
    assert [item.id for item in openai_client.responses.input_items.list(second.id, limit=1)] == [
        item["id"] for item in reversed(page["data"])
    ]


def test_a_deleted_response_is_gone_and_continued_by_none(
    openai_client: openai.OpenAI, live: httpx.Client
) -> None:
    first = create(openai_client)
    second = create(openai_client, previous_response_id=first.id)
    assert live.delete(f"/v1/responses/{first.id}").json() == {
        "id": first.id,
        "object": "response",
        "deleted": True,
    }
    for gone in (openai_client.responses.retrieve, openai_client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            gone(first.id)
    for previous in (first.id, second.id):
        with pytest.raises(openai.BadRequestError, match=first.id) as caught:
            create(openai_client, previous_response_id=previous)
        assert caught.value.code == "previous_response_not_found"
    openai_client.responses.delete(second.id)


def test_only_a_response_s_id_can_be_continued(live: httpx.Client) -> None:
    others = ["", "resp_0000000000000000", "job_0000000000000000", "helper", "'", "\x00", "x" * 128]
    for previous in others:
        answer = post(live, previous_response_id=previous)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (
            400,
            "previous_response_not_found",
            "previous_response_id",
        )


def test_only_a_response_s_id_can_be_shown(live: httpx.Client) -> None:
    for other in ("resp_0000000000000000", "job_1", "%00", "%ED%A0%BD", "x" * 1000, "resp_%27"):
        path = f"/v1/responses/{other}"
        answers = [
            live.get(path),
            live.delete(path),
            live.post(f"{path}/cancel"),
            live.get(f"{path}/input_items"),
        ]
        assert [answer.status_code for answer in answers] == [404] * 4


def test_a_response_expires_but_not_under_one_that_continues_it(
    openai_client: openai.OpenAI, database: Database
) -> None:
    first = create(openai_client, input="One")
    second = create(openai_client, input="Two", previous_response_id=first.id)
    set_expiry(database, first.id, hours=-1)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(first.id)
    create(openai_client, input="Three", previous_response_id=second.id)
    with database.snapshot() as session:
        row = session.get_one(tables.ResponseRow, second.id)
        assert timedelta(hours=23) < row.expires_at - datetime.now(UTC) <= timedelta(hours=24)


def set_expiry(database: Database, response_id: str, *, hours: float) -> None:
    at = datetime.now(UTC) + timedelta(hours=hours)
    is_it = tables.ResponseRow.id == response_id
    with database.transaction() as session:
        session.execute(update(tables.ResponseRow).where(is_it).values(expires_at=at))


def test_a_thousand_responses_are_one_conversation(
    openai_client: openai.OpenAI, engine: FakeEngine, database: Database
) -> None:
    """The time is that of one query, whatever the length."""
    first = create(openai_client, input="One")
    with database.transaction() as session:
        row = session.get_one(tables.ResponseRow, first.id)
        columns = {column.key: getattr(row, column.key) for column in tables.ResponseRow.__mapper__.columns}
        previous = first.id
        for number in range(1000):
            response_id = f"resp_{number:016}"
            session.add(tables.ResponseRow(**{**columns, "id": response_id, "previous_id": previous}))
            previous = response_id
    create(openai_client, input="Last", previous_response_id=previous)
    turns = roles(engine)
    assert (len(turns), turns[-1]) == (2003, ("user", "Last"))


def test_a_conversation_larger_than_a_request_is_too_long(
    openai_client: openai.OpenAI, database: Database, settings: Settings
) -> None:
    first = create(openai_client)
    with database.transaction() as session:
        session.get_one(tables.ResponseRow, first.id).conversation_bytes = settings.max_body_bytes + 1
    with pytest.raises(openai.BadRequestError) as caught:
        create(openai_client, previous_response_id=first.id)
    assert caught.value.code == "context_length_exceeded"


def test_the_size_of_a_conversation_is_that_of_all_its_items(
    openai_client: openai.OpenAI, database: Database
) -> None:
    first = create(openai_client, input="x" * 1000)
    second = create(openai_client, input="x" * 1000, previous_response_id=first.id)
    with database.snapshot() as session:
        sizes = [session.get_one(tables.ResponseRow, one.id).conversation_bytes for one in (first, second)]
    assert 1000 < sizes[0] < 2000 < sizes[1] < 4000


def test_a_stored_response_is_not_streamed(openai_client: openai.OpenAI) -> None:
    made = create(openai_client)
    with pytest.raises(openai.BadRequestError, match="stream"):
        openai_client.responses.retrieve(made.id, stream=True)


def test_only_a_response_in_the_background_can_be_cancelled(openai_client: openai.OpenAI) -> None:
    made = create(openai_client)
    with pytest.raises(openai.BadRequestError, match="background"):
        openai_client.responses.cancel(made.id)
