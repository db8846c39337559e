"""Parsing records into rows, what becomes of every field, and the messages about bad rows."""

import json
from typing import Any

import pytest

from app.core.datasets.formats import choose_layout
from app.core.datasets.parsing import parse_row
from app.core.datasets.problems import BadRow
from app.core.datasets.rows import Completion, Conversation, Message, PlainText, Row

ASKED = (Message("user", "q"), Message("assistant", "a"))


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def sharegpt(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": content} for role, content in turns]}


def parsed(record: dict[str, Any], column_map: dict[str, str] | None = None) -> Row:
    return parse_row(record, choose_layout(record, column_map or {})).row


def complaint(record: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as bad:
        parsed(record)
    return str(bad.value)


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (chat(("user", "q"), ("assistant", "a")), Conversation(ASKED)),
        ({"messages": json.dumps(chat(("user", "q"), ("assistant", "a"))["messages"])}, Conversation(ASKED)),
        ({"messages": sharegpt(("human", "q"), ("gpt", "a"))["conversations"]}, Conversation(ASKED)),
        ({"prompt": "p", "completion": "c"}, Completion("p", "c")),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            Conversation(ASKED),
        ),
        ({"text": " 😀\n", "id": 1}, PlainText(" 😀\n")),
        ({"instruction": "q", "input": "", "output": "a"}, Conversation(ASKED)),
        (
            {"instruction": "do", "input": "this", "output": "a", "system": "s"},
            Conversation((Message("system", "s"), Message("user", "do\n\nthis"), Message("assistant", "a"))),
        ),
        (sharegpt(("human", "q"), ("gpt", "a")), Conversation(ASKED)),
        (
            {"system": "s", **sharegpt(("human", "q"), ("gpt", "a"))},
            Conversation((Message("system", "s"), *ASKED)),
        ),
        ({"system": None, **sharegpt(("human", "q"), ("gpt", "a"))}, Conversation(ASKED)),
        (
            {"system": "s", **chat(("user", "q"), ("assistant", "a"))},
            Conversation((Message("system", "s"), *ASKED)),
        ),
        (
            {"system": "s", **chat(("system", "s"), ("user", "q"), ("assistant", "a"))},
            Conversation((Message("system", "s"), *ASKED)),
        ),
        (
            {
                "system": "s",
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            Conversation((Message("system", "s"), *ASKED)),
        ),
        (
            chat(("developer", "s"), ("User", "q"), ("model", "a")),
            Conversation((Message("system", "s"), *ASKED)),
        ),
        (
            {
                "messages": [
                    {"role": "user", "parts": [{"text": "q"}]},
                    {"role": "model", "parts": [{"text": "a"}]},
                ]
            },
            Conversation(ASKED),
        ),
        (
            chat(("user", [{"type": "text", "text": "q"}]), ("assistant", [{"type": "text", "text": "a"}])),
            Conversation(ASKED),
        ),
        (
            {
                "messages": [
                    {"from": "human", "value": "q", "role": None, "content": None, "weight": None},
                    {"from": None, "value": None, "role": "assistant", "content": "a", "weight": 1.0},
                ]
            },
            Conversation(ASKED),
        ),
        (
            {"instruction": "q", "output": "a", "history": [["q", "a"]]},
            Conversation((*ASKED, *ASKED)),
        ),
        ({"instruction": "q", "output": "a", "history": '[["q", "a"]]'}, Conversation((*ASKED, *ASKED))),
        ({"instruction": "q", "output": "a", "history": "", "system": float("nan")}, Conversation(ASKED)),
        ({"instruction": "q", "output": "a", "input": float("nan")}, Conversation(ASKED)),
    ],
)
def test_each_format_is_detected_and_parsed(record: dict[str, Any], row: Row) -> None:
    assert parsed(record) == row


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (chat(("user", "q")), "the last message must be from the assistant, found 'user'."),
        (chat(("assistant", "a")), "message 1 must be from the user, found 'assistant'."),
        (
            chat(("system", "s"), ("user", "q"), ("user", "q")),
            "message 3 must be from the assistant, found 'user'.",
        ),
        (chat(("system", "s")), "the last message must be from the assistant, found 'system'."),
        (chat(("bot", "a")), "message 1 has the role 'bot'; use one of system, user, assistant, tool."),
        (
            {"messages": [{"role": ["user"], "content": "q"}]},
            "message 1 has the role a list; use one of system, user, assistant, tool.",
        ),
        (
            sharegpt(("bot", "a")),
            "message 1 has the role 'bot'; use one of human, gpt, system, user, assistant, observation.",
        ),
        ({"messages": [{"content": "q"}]}, "message 1 has no 'role'."),
        ({"messages": [{"role": "user"}]}, "message 1 has no 'content'."),
        ({"messages": ["q"]}, "message 1 must be an object with 'role' and 'content', found text."),
        (
            chat(("user", "q"), ("assistant", "  ")),
            "message 2: 'content' is empty. Fill it in, or remove the row.",
        ),
        (chat(("user", 5), ("assistant", "a")), "message 1: 'content' must be text, found a number."),
        (chat(("user", None), ("assistant", "a")), "message 1: 'content' must be text, found null."),
        (
            chat(("user", "\ud83d"), ("assistant", "a")),
            "message 1: 'content' holds \\ud83d, half of a surrogate pair. Write the whole character.",
        ),
        (
            {"prompt": [], "completion": []},
            "'prompt' must be a list of messages, found an empty list.",
        ),
        ({"messages": []}, "'messages' must be a list of messages, found an empty list."),
        ({"messages": {}}, "'messages' must be a list of messages, found an object."),
        (
            {"messages": "q"},
            "'messages' must be a list of messages: not valid JSON: Expecting value at column 1.",
        ),
        ({"messages": '{"a": 1}'}, "'messages' must be a list of messages, found an object."),
        ({"text": True}, "'text' must be text, found true or false."),
        ({"text": b"t"}, "'text' must be text, found a value of type bytes."),
        ({"prompt": "p", "completion": ""}, "'completion' is empty. Fill it in, or remove the row."),
        (
            {"prompt": "p", "completion": ["c"]},
            "'completion' is a list and 'prompt' is text. Write both as lists of messages, or both as text.",
        ),
        (
            {"prompt": ["p", "p"], "completion": ["c", "c"]},
            "'prompt' is a list of texts: the file holds whole columns. Write one object for each row.",
        ),
        (
            chat(("user", "q"), ("tool", "t")),
            "message 2 is the result of a call, and the turn before it calls nothing.",
        ),
        (
            sharegpt(("human", "q"), ("function_call", "t")),
            "message 2: the calls must be JSON: not valid JSON: Expecting value at column 1.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            "message 1 has no text; only text can be learned from yet.",
        ),
        (
            chat(("user", ["q"]), ("assistant", "a")),
            "message 1: part 1 must be an object with 'type' and 'text', found text.",
        ),
        (chat(("user", [{"type": "text"}])), "message 1: part 1 has no 'text'."),
        (
            {"system": "s", **chat(("system", "other"), ("user", "q"), ("assistant", "a"))},
            "the row has two system prompts, a column and a message, that differ. Keep one.",
        ),
        (
            {"instruction": "q", "output": "a", "history": [["q"]]},
            "pair 1 of 'history' must be [question, answer], found a list of 1.",
        ),
        (
            {"instruction": "q", "output": "a", "history": "then"},
            "'history' must be a list of [question, answer] pairs, or of messages: not valid JSON: "
            "Expecting value at "
            "column 1.",
        ),
        ({"instruction": "q", "input": 1, "output": "a"}, "'input' must be text, found a number."),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(record: dict[str, Any], said: str) -> None:
    assert complaint(record) == said


def test_a_weight_must_be_0_or_1_and_leave_something_to_learn() -> None:
    record = chat(("user", "q"), ("assistant", "a"))
    record["messages"][1]["weight"] = None
    assert parsed(record) == Conversation(ASKED)
    record["messages"][1]["weight"] = 2
    assert complaint(record) == "message 2 has a weight that is neither 0 nor 1."
    record["messages"][1]["weight"] = 0
    assert complaint(record) == "every assistant message has the weight 0, so there is nothing to learn."


def test_a_mapped_row_takes_its_text_from_the_named_columns() -> None:
    record = {"question": "q", "answer": "a", "text": "t"}
    assert parsed(record, {"prompt": "question", "completion": "answer"}) == Completion("q", "a")
    with pytest.raises(BadRow, match="'answer' is empty"):
        parsed({**record, "answer": ""}, {"prompt": "question", "completion": "answer"})


@pytest.mark.parametrize("flag", ["weight", "loss", "train", "training", "Loss"])
def test_flags_of_other_trainers_exclude_a_turn_from_the_loss(flag: str) -> None:
    record = chat(("user", "q"), ("assistant", "draft"), ("user", "fix"), ("assistant", "a"))
    record["messages"][1][flag] = False
    record["messages"][3][flag] = True
    row = parsed(record)
    assert isinstance(row, Conversation)
    assert [message.weight for message in row.messages] == [1, 0, 1, 1]
    record["messages"][1][flag] = "no"
    assert complaint(record).startswith(f"message 2 has a {flag} that is neither ")


def test_flags_that_contradict_each_other_are_named() -> None:
    record = chat(("user", "q"), ("assistant", "a"))
    record["messages"][1] |= {"weight": 1, "train": False}
    assert complaint(record) == "message 2 has 'weight', 'train', which contradict each other. Remove one."


def unused(record: dict[str, Any], column_map: dict[str, str] | None = None) -> dict[str, str | None]:
    """Paths of unused fields, and what those with a value say; empty ones say nothing."""
    found = parse_row(record, choose_layout(record, column_map or {})).unused.found
    return {path: meaning if has_value else None for path, (has_value, meaning) in found.items()}


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (chat(("user", "q"), ("assistant", "a")), {}),
        ({"text": "t", "id": 7, "category": None, "tags": []}, {"id": None, "tags": None}),
        ({"text": "t", "system": "s"}, {"system": "a system prompt"}),
        ({"prompt": "p", "completion": "c", "system": "s"}, {"system": "a system prompt"}),
        ({"text": "t", "label": False}, {"label": "labels"}),
        (
            {"tools": True, **chat(("user", "q"), ("assistant", "a"))},
            {"tools": None},
        ),
        (
            {"text": "t", "tools": [{"name": "f"}]},
            {"tools": "tools"},
        ),
        (
            {"Tool-Calls": [1], **chat(("user", "q"), ("assistant", "a"))},
            {"Tool-Calls": "tools"},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q", "name": "ann", "tool_calls": None},
                    {"role": "assistant", "content": "a", "tool_responses": ["1"], "thoughts": ["t"]},
                ]
            },
            {
                "messages[].name": None,
                "messages[].tool_responses": "tools",
                "messages[].thoughts": "reasoning",
            },
        ),
        (
            {
                "prompt": [{"role": "user", "content": "q", "id": 1}],
                "completion": [{"role": "assistant", "content": "a", "train_detail": [{"train": False}]}],
            },
            {"prompt[].id": None, "completion[].train_detail": "a loss mask"},
        ),
        (
            chat(
                ("user", [{"type": "text", "text": "q", "cache": 1}, {"type": "image", "image": None}]),
                ("assistant", [{"type": "text", "text": "a", "image": None}, {"type": "odd", "odd": 1}]),
            ),
            {
                "messages[].content[].cache": None,
                "messages[].content[].image": "images, video or sound",
                "messages[].content[].odd": "a part that is not text",
            },
        ),
        (
            {"text": "t", "chosen": {"role": None, "content": None}, "rejected_2": {"role": "a"}},
            {"rejected_2": "preferences"},
        ),
    ],
)
def test_every_field_that_is_not_used_is_named(record: dict[str, Any], fields: dict[str, Any]) -> None:
    assert unused(record) == fields


def test_a_learned_question_among_others_that_are_not_is_named() -> None:
    record = sharegpt(("human", "q"), ("gpt", "a"), ("human", "q"), ("gpt", "a"))
    for turn, is_trained in zip(record["conversations"], [False, True, False, True], strict=True):
        turn["train"] = is_trained
    assert unused(record) == {}
    record["conversations"][2]["train"] = True
    assert unused(record) == {"conversations[].train": "a loss mask"}


def test_a_mapped_column_is_used_and_what_it_replaces_is_named() -> None:
    record = {"instruction": "q", "output": "a", "text": "t", "system_prompt": "s"}
    mapped = {"instruction": "instruction", "system": "system_prompt"}
    assert unused(record, mapped) == {"text": None}
    assert unused({**record, "system": "other"}, mapped) == {"text": None, "system": "a system prompt"}
