"""The events of streamed responses, in OpenAI's order, and what is stored when a stream breaks off."""

import json
import socket
from typing import Any

import httpx
import openai
import pytest

from app.core.engine.messages import Failed, ReasoningDelta, TokenDelta, ToolCallDelta
from tests.api.openai.responses.contract import CALL, check, event_adapter, events
from tests.api.openai.responses.test_create import CALLED, CUT, PLAIN, City
from tests.fakes import FINISHED, Act, FakeEngine
from tests.waiting import wait_for


def names(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


def test_a_message_is_opened_filled_and_closed(live: httpx.Client) -> None:
    found = events(live)
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert names(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event["delta"] for event in deltas) == "Hello"
    assert [event["response"]["status"] for event in found if "response" in event] == [
        "in_progress",
        "in_progress",
        "completed",
    ]
    done = next(event for event in found if event["type"] == "response.output_item.done")
    assert found[-1]["response"]["output"][0]["id"] == done["item"]["id"] == deltas[0]["item_id"]


def test_thoughts_and_calls_have_events_of_their_own(live: httpx.Client, engine: FakeEngine) -> None:
    engine.script = [
        ReasoningDelta(text="Hm."),
        ToolCallDelta(index=0, id="call_1", name="show_job", arguments='{"id":"7"}'),
        ToolCallDelta(index=1, id="call_2", name="show_job", arguments="{}"),
        CALLED,
    ]
    found = events(live, tools=[CALL])
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
    assert names(found)[2:-1] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        *[*call, "output_item.done"] * 2,
    ]
    items = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "function_call", "function_call"]
    assert [item["arguments"] for item in items[1:]] == ['{"id":"7"}', "{}"]
    indexes = [event["output_index"] for event in found if "output_index" in event]
    assert indexes == sorted(indexes)
    final = found[-1]["response"]["output"]
    assert [item["id"] for item in final] == [item["id"] for item in items]


def test_a_stream_and_a_whole_response_are_equal(live: httpx.Client, engine: FakeEngine) -> None:
    engine.script = [ReasoningDelta(text="Hm."), TokenDelta(text="a", tokens=[PLAIN]), CUT]
    include = ["message.output_text.logprobs"]
    streamed = events(live, include=include)[-1]
    whole = live.post("/v1/responses", json={"model": "helper", "input": "Hi", "include": include}).json()
    assert streamed["type"] == "response.incomplete"

    def without_ids(response: dict[str, Any]) -> dict[str, Any]:
        output = [{**item, "id": ""} for item in response["output"]]
        return {**response, "output": output, "id": "", "created_at": 0}

    assert without_ids(streamed["response"]) == without_ids(whole)


def test_the_client_s_stream_helper_ends_with_the_response(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [
        ReasoningDelta(text="Hm."),
        TokenDelta(text='{"city":'),
        TokenDelta(text='"Oslo"}'),
        FINISHED,
    ]
    with openai_client.responses.stream(model="helper", input="A city?", text_format=City) as stream:
        for event in stream:
            event_adapter.validate_python(event.model_dump(mode="json", by_alias=True, warnings=False))
        response = stream.get_final_response()
    assert response.output_parsed == City(city="Oslo")


def test_the_stream_helper_bears_a_withdrawn_call(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [
        ToolCallDelta(index=0, id="call_1", name="show_job", arguments='{"id":'),
        ToolCallDelta(index=0, is_withdrawn=True),
        TokenDelta(text='{"id":oh'),
        FINISHED,
    ]
    with openai_client.responses.stream(model="helper", input="Hi", tools=[CALL]) as stream:  # type: ignore[list-item]
        response = stream.get_final_response()
    assert [item.type for item in response.output] == ["message"]


def test_an_early_refusal_is_an_http_error(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [Failed(kind="invalid", code="context_length_exceeded", message="Too long.")]
    with pytest.raises(openai.BadRequestError, match="Too long") as caught:
        openai_client.responses.create(model="helper", input="Hi", stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_an_error_in_mid_stream_is_an_event_and_stored(
    live: httpx.Client, openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="Hel"), Failed(kind="internal", code="oops", message="Oops.")]
    found = events(live)
    assert names(found)[-2:] == ["failed", "error"]
    failed = found[-2]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert (found[-1]["code"], found[-1]["message"]) == ("server_error", "Oops.")
    stored = check(openai_client.responses.retrieve(failed["id"]))
    assert (stored.status, stored.error.message) == ("failed", "Oops.")
    assert (stored.output_text, stored.output[0].status) == ("Hel", "incomplete")


def test_an_engine_that_breaks_off_fails_the_response(live: httpx.Client, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.BREAK]
    assert names(events(live))[-2:] == ["failed", "error"]


def test_a_client_that_leaves_ends_the_work_and_the_response_is_cancelled(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    with openai_client.responses.create(model="helper", input="Hi", stream=True) as stream:
        seen = iter(stream)
        response_id = next(seen).response.id  # type: ignore[union-attr]
        assert next(event for event in seen if event.type == "response.output_text.delta")
    assert engine.lost_its_client.wait(10)

    def stored() -> Any:
        try:
            return openai_client.responses.retrieve(response_id)
        except openai.NotFoundError:
            return None

    wait_for(stored, "the response")
    response = check(stored())
    assert (response.status, response.output_text) == ("cancelled", "Hel")


def test_a_client_that_leaves_before_a_whole_response_ends_the_work(
    live: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    body = json.dumps({"model": "helper", "input": "Hi"}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((live.base_url.host, live.base_url.port or 0)) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert engine.holding.acquire(timeout=10)
    assert engine.lost.acquire(timeout=10)


def test_line_breaks_of_unicode_break_no_event(live: httpx.Client, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="a\u2028b\x85c\n"), FINISHED]
    assert events(live)[-1]["response"]["output"][0]["content"][0]["text"] == "a\u2028b\x85c\n"
