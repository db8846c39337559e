"""Functions, calls, results and reasoning in files as people write them for OpenAI, TRL and others."""

import json
from dataclasses import replace
from typing import Any

import pytest

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import Completion, Conversation, Message, PlainText
from tests.core.datasets.outcomes import (
    ALPACA,
    ASKED,
    QA,
    Refused,
    Taken,
    chat,
    check_outcome,
    said,
    sharegpt,
    structs,
    turns,
)
from tests.core.datasets.uploads import parquet
from tests.factories import jsonl


def call(call_id: str | None, arguments: object) -> dict[str, Any]:
    """A call as OpenAI's files have it; a text that is no JSON object is the argument `pier`."""
    if isinstance(arguments, str) and not arguments.startswith("{"):
        arguments = json.dumps({"pier": arguments})
    return {"id": call_id, "type": "function", "function": {"name": "get_tide", "arguments": arguments}}


def called(call_id: str | None, pier: str = "north") -> ToolCall:
    return ToolCall(id=call_id, name="get_tide", arguments={"pier": pier})


def tooled(*messages: Message, tools: tuple[FunctionTool, ...] | None = None) -> Conversation:
    return Conversation((Q, *messages), (TIDE_TOOL,) if tools is None else tools)


SCHEMA = {"type": "object", "properties": {"pier": {"type": "string"}}}
TIDE = {"name": "get_tide", "description": "Tide at a pier", "parameters": SCHEMA}
TOOL = {"type": "function", "function": TIDE}
TIDE_TOOL = FunctionTool(name="get_tide", description="Tide at a pier", parameters=SCHEMA)
FIRST_CALL = call("call_1", "north")
PLAIN_CALL = {"name": "get_tide", "arguments": {"pier": "north"}}
Q, A = Message("user", "q"), Message("assistant", "a")
F = ToolCall(id="1", name="f", arguments={})
CALLED = Message("assistant", "", tool_calls=(called("call_1"),))
RESULT = Message("tool", "1", tool_call_id="call_1")

FILES: dict[str, tuple[bytes, Taken | Refused]] = {
    # Tools
    "OpenAI, a call without text": (
        chat(
            said("user", "q"),
            said("assistant", None, tool_calls=[FIRST_CALL]),
            said("tool", "1", tool_call_id="call_1"),
            said("assistant", "a"),
            tools=[TOOL],
        ),
        Taken(tooled(CALLED, RESULT, A)),
    ),
    "OpenAI, a call with an empty text": (
        chat(said("user", "q"), said("assistant", "", tool_calls=[FIRST_CALL])),
        Taken(tooled(CALLED, tools=())),
    ),
    "OpenAI, a call without a content": (
        chat(said("user", "q"), {"role": "assistant", "tool_calls": [FIRST_CALL]}),
        Taken(tooled(CALLED, tools=())),
    ),
    "OpenAI, a call with a text": (
        chat(said("user", "q"), said("assistant", "a", tool_calls=[FIRST_CALL]), tools=[TOOL]),
        Taken(tooled(replace(CALLED, content="a"))),
    ),
    "OpenAI, tools that are not called": (
        chat(*ASKED, tools=[TOOL], parallel_tool_calls=False),
        Taken(tooled(A), ["parallel_tool_calls"]),
    ),
    "OpenAI, two calls at once": (
        chat(
            said("user", "q"),
            said("assistant", None, tool_calls=[call("call_1", "north"), call("call_2", "south")]),
            said("tool", "1", tool_call_id="call_2"),
            said("tool", [{"type": "text", "text": "2"}], tool_call_id="call_1"),
            said("assistant", "a"),
            tools=[TOOL],
        ),
        Taken(
            tooled(
                Message("assistant", "", tool_calls=(called("call_1", "north"), called("call_2", "south"))),
                Message("tool", "1", tool_call_id="call_2"),
                Message("tool", "2", tool_call_id="call_1"),
                A,
            )
        ),
    ),
    "OpenAI, the older functions": (
        chat(
            said("user", "q"),
            said("assistant", None, function_call={"name": "get_tide", "arguments": '{"pier": "north"}'}),
            said("function", "1", name="get_tide"),
            said("assistant", "a"),
            functions=[TIDE],
        ),
        Taken(
            tooled(
                Message("assistant", "", tool_calls=(called(None),)),
                Message("tool", "1", name="get_tide"),
                A,
            )
        ),
    ),
    "OpenAI, a call of a function that is not listed": (
        chat(said("user", "q"), said("assistant", "", tool_calls=[FIRST_CALL]), tools=[{"name": "get_wind"}]),
        Refused("message 2 calls 'get_tide', which is not among the row's functions: 'get_wind'."),
    ),
    "OpenAI, arguments that are a list": (
        chat(said("user", "q"), said("assistant", None, tool_calls=[call("1", ["north"])])),
        Refused("message 2: call 1: its arguments must be a JSON object, found a list."),
    ),
    "OpenAI, arguments that are no JSON": (
        chat(said("user", "q"), said("assistant", None, tool_calls=[call("1", "{'pier'")])),
        Refused("message 2: call 1: its arguments must be a JSON object: not valid JSON: Expecting"),
    ),
    "OpenAI, one id of two calls": (
        chat(said("user", "q"), said("assistant", None, tool_calls=[FIRST_CALL, FIRST_CALL])),
        Refused("message 2 has two calls with the id 'call_1'. Give each call an id of its own."),
    ),
    "OpenAI, a result of no call": (
        chat(*ASKED, said("tool", "1", tool_call_id="call_1"), ASKED[1]),
        Refused("message 3 is the result of a call, and the turn before it calls nothing."),
    ),
    "OpenAI, the result of an unknown call": (
        chat(
            ASKED[0],
            said("assistant", None, tool_calls=[FIRST_CALL]),
            said("tool", "1", tool_call_id="call_2"),
            ASKED[1],
        ),
        Refused("message 3 is the result of 'call_2', which is not among the calls before it: 'call_1'."),
    ),
    "OpenAI, a call of the user": (
        chat(said("user", None, tool_calls=[FIRST_CALL]), ASKED[1]),
        Refused("message 1 is of the user and has 'tool_calls'; only the assistant calls functions."),
    ),
    "OpenAI, two results of one call": (
        chat(ASKED[0], said("assistant", None, tool_calls=[FIRST_CALL]), *[said("tool", "1")] * 2, ASKED[1]),
        Refused("message 4 is one result more than the turn before it makes calls."),
    ),
    "OpenAI, a built-in tool": (
        chat(*ASKED, tools=[{"type": "web_search"}]),
        Refused("function 1 of 'tools' has the type 'web_search'; only functions can be called."),
    ),
    "OpenAI, one function twice": (
        chat(*ASKED, tools=[TOOL, TIDE]),
        Refused("'tools' has the function 'get_tide' more than once. Keep one of them."),
    ),
    "half of a character in an argument": (
        chat(said("user", "q"), said("assistant", None, tool_calls=[call("1", {"pier": "\ud83d"})])),
        Refused("message 2: call 1: its arguments hold \\ud83d, half of a surrogate pair."),
    ),
    "TRL, arguments as an object and results as values": (
        chat(
            said("user", "q"),
            said("assistant", "", tool_calls=[{"type": "function", "function": PLAIN_CALL}]),
            {"role": "tool", "name": "get_tide", "content": {"metres": 1.2}},
            said("assistant", "a"),
            tools=json.dumps([TOOL]),
        ),
        Taken(
            tooled(
                Message("assistant", "", tool_calls=(called(None),)),
                Message("tool", '{"metres": 1.2}', name="get_tide"),
                A,
            )
        ),
    ),
    "TRL, what Parquet fills in": (
        parquet(
            "SELECT [{'role': 'user', 'content': 'q', 'tool_calls': NULL}, {'role': 'assistant', "
            "'content': NULL, 'tool_calls': [{'name': 'get_tide', "
            "'arguments': {'pier': 'north', 'city': NULL}}]}] AS messages, [{'name': 'get_tide', "
            "'description': 'Tide at a pier', 'parameters': {'type': 'object', 'properties': "
            "{'pier': {'type': 'string'}, 'city': NULL}}}] AS tools"
        ),
        Taken(tooled(Message("assistant", "", tool_calls=(called(None),)))),
    ),
    "ms-swift, turns of calls": (
        chat(
            said("user", "q"),
            said("assistant", "a"),
            said("tool_call", json.dumps({"name": "get_tide", "arguments": {"pier": "north"}})),
            said("tool_call", json.dumps({"name": "get_tide", "arguments": '{"pier": "south"}'})),
            said("tool_response", "1"),
            said("tool_response", "2"),
            said("assistant", "a"),
            tools=json.dumps([TIDE]),
        ),
        Taken(
            tooled(
                Message("assistant", "a", tool_calls=(called(None), called(None, "south"))),
                Message("tool", "1"),
                Message("tool", "2"),
                A,
            )
        ),
    ),
    "Hermes, calls in the text": (
        sharegpt(
            ("system", "You may call <tools>[…]</tools>"),
            ("human", "q"),
            ("gpt", f"a\n<tool_call>\n{json.dumps(PLAIN_CALL)}\n</tool_call>\n"),
            ("tool", "<tool_response>\n1\n</tool_response>"),
            ("gpt", "a"),
            tools=json.dumps([TOOL]),
        ),
        Taken(
            Conversation(
                (
                    Message("system", "You may call <tools>[…]</tools>"),
                    Q,
                    Message("assistant", "a", tool_calls=(called(None),)),
                    Message("tool", "1"),
                    A,
                )
            )
        ),
    ),
    "a call in the text that is none": (
        chat(said("user", "q"), said("assistant", "Write <tool_call>{}</tool_call>")),
        Taken(turns("q", "Write <tool_call>{}</tool_call>")),
    ),
    "Phi, tools in the system message": (
        chat(said("system", "s", tools=json.dumps([TIDE])), *ASKED),
        Taken(Conversation((Message("system", "s"), Q, A), (TIDE_TOOL,))),
    ),
    "Alpaca, tools": (jsonl([{**ALPACA, "tools": [TOOL]}]), Taken(tooled(A))),
    "tools without a chat": (
        jsonl([{"prompt": "p", "completion": "c", "tools": [TOOL]}]),
        Refused("'tools' (tools) in 1 of 1 rows (line 1). That is not supported yet."),
    ),
    "OpenAI, no tools": (chat(*ASKED, tools=None), Taken(QA)),
    "OpenAI, settings without tools": (
        chat(*ASKED, parallel_tool_calls=False, tool_choice="auto"),
        Taken(QA, ["parallel_tool_calls", "tool_choice"]),
    ),
    "reasoning that is switched off": (
        chat(ASKED[0], said("assistant", "a", thinking=False), reasoning="Off", tools=True),
        Taken(QA, ["tools", "messages[].thinking", "reasoning"]),
    ),
    "CSV, reasoning that is switched on": (
        b"prompt,completion,thinking\np,c,True\n",
        Taken(Completion("p", "c"), ["thinking"]),
    ),
    "Parquet, reasoning that is switched off": (
        parquet("SELECT 't' AS text, 'off' AS reasoning, false AS thinking"),
        Taken(PlainText("t"), ["reasoning", "thinking"]),
    ),
    "LLaMA-Factory, turns of tools": (
        sharegpt(
            ("human", "q"),
            ("function_call", f"<think>\nr\n</think>\n\n{json.dumps(PLAIN_CALL)}"),
            ("observation", "1"),
            ("gpt", "a"),
            tools=json.dumps([TIDE]),
        ),
        Taken(
            tooled(
                Message("assistant", "", tool_calls=(called(None),), reasoning="r"), Message("tool", "1"), A
            )
        ),
    ),
    "LLaMA-Factory, a call without arguments": (
        sharegpt(
            ("human", "q"), ("function_call", '{"name": "f"}'), ("observation", "1"), ("gpt", "a"), tools="[]"
        ),
        Taken(
            tooled(
                Message("assistant", "", tool_calls=(ToolCall(name="f", arguments={}),)),
                Message("tool", "1"),
                A,
                tools=(),
            )
        ),
    ),
    "LLaMA-Factory, empty tools": (sharegpt(("human", "q"), ("gpt", "a"), tools="[]"), Taken(QA)),
    "Parquet, null for tool calls": (
        parquet(structs("NULL")),
        Taken(QA),
    ),
    "Parquet, a tool call": (
        parquet(structs("[{'id': 1, 'function': {'name': 'f', 'arguments': '{}'}}]")),
        Taken(tooled(Message("assistant", "a", tool_calls=(F,)), tools=())),
    ),
    "Parquet, a call without a name": (
        parquet(structs("[{'id': 1}]")),
        Refused("message 2: call 1: its 'name' is missing."),
    ),
    # Reasoning
    "DeepSeek, reasoning_content": (
        chat(said("user", "q"), said("assistant", "a", reasoning_content="r")),
        Taken(tooled(Message("assistant", "a", reasoning="r"), tools=())),
    ),
    "gpt-oss, thinking": (
        chat(said("user", "q"), said("assistant", "a", thinking="r\n")),
        Taken(tooled(Message("assistant", "a", reasoning="r"), tools=())),
    ),
    "reasoning in two places": (
        chat(said("user", "q"), said("assistant", "a", thinking="r", reasoning="s")),
        Refused("message 2 has 'thinking', 'reasoning', which differ. Keep one of them."),
    ),
    "reasoning in the text as well": (
        chat(said("user", "q"), said("assistant", "<think>r</think>a", reasoning="r")),
        Refused("message 2 has thoughts in its text and in a field of their own. Keep one of them."),
    ),
    "reasoning of a question": (
        chat(said("user", "q", reasoning="r"), ASKED[1]),
        Refused("'messages[].reasoning' (reasoning)"),
    ),
    "reasoning beside a prompt": (
        jsonl([{"prompt": "p", "completion": "c", "reasoning": "r"}]),
        Refused("'reasoning' (reasoning)"),
    ),
    "TRL, settings of the chat template": (
        chat(*ASKED, chat_template_kwargs={"enable_thinking": False}),
        Refused("'chat_template_kwargs' (settings of the chat template)"),
    ),
    "Qwen, thoughts in the text": (
        chat(said("user", "q"), said("assistant", "<think>\nr\n</think>\n\na")),
        Taken(turns("q", "<think>\nr\n</think>\n\na")),
    ),
}


@pytest.mark.parametrize(("content", "outcome"), FILES.values(), ids=FILES)
def test_a_file_is_learned_or_named_or_refused(content: bytes, outcome: Taken | Refused) -> None:
    check_outcome(content, outcome)
