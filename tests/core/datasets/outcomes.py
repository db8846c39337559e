"""Files as people write them for other trainers, and what becomes of them."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from app.core.datasets.inspection import refuse_fields, refuse_problems
from app.core.datasets.rows import Conversation, Message, Row
from app.core.errors.datasets import DatasetInvalid
from tests.core.datasets.uploads import inspected
from tests.factories import jsonl

ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ALPACA = {"instruction": "q", "input": "", "output": "a"}


@dataclass
class Taken:
    """The first row, and the fields that are named as not used."""

    row: Row
    unused: list[str] = field(default_factory=list)


@dataclass
class Refused:
    """Words of the message or the hint."""

    said: str


def turns(*texts: str, system: str | None = None, unlearned: int | None = None) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    spoken = [Message(role, text) for role, text in zip(roles, texts, strict=False)]
    if unlearned is not None:
        spoken[unlearned] = Message("assistant", texts[unlearned], weight=0)
    return Conversation((*([Message("system", system)] if system else []), *spoken))


def chat(*messages: dict[str, Any], **columns: Any) -> bytes:
    return jsonl([{"messages": list(messages), **columns}])


def said(role: str, content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **keys}


def sharegpt(*messages: tuple[str, str], **columns: Any) -> bytes:
    return jsonl([{"conversations": [{"from": who, "value": text} for who, text in messages], **columns}])


def structs(last_keys: str) -> str:
    return (
        "SELECT [{'role': 'user', 'content': 'q', 'tool_calls': NULL}, "
        f"{{'role': 'assistant', 'content': 'a', 'tool_calls': {last_keys}}}] AS messages"
    )


QA = turns("q", "a")


def check_outcome(content: bytes, outcome: Taken | Refused) -> None:
    """Read a file as an upload does, and compare."""

    def take() -> Taken:
        upload = inspected(content)
        refuse_problems(upload.found)
        refuse_fields(upload.found)
        return Taken(upload.rows[0][1], [one.field for one in upload.found.unused_fields])

    if isinstance(outcome, Taken):
        found = take()
        assert found == outcome, found
        return
    with pytest.raises(DatasetInvalid) as refused:
        take()
    words = f"{refused.value.message} {refused.value.hint}"
    assert outcome.said in words, words
