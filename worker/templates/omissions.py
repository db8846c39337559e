"""Finds what a chat template leaves out of the messages of a row: thoughts of earlier turns, say."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.datasets.rows import Conversation, Message
from worker.templates.renderer import DatedRenderer
from worker.templates.training_text import TrainingText

_SHOWN = 40
_THOUGHT_TAGS = re.compile(r"</?[\w:]*think[\w:]*>")


@dataclass(frozen=True)
class Omission:
    """Text of a message, counted from 1, that is not in what the model reads."""

    message: int
    text: str

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= _SHOWN else self.text[:_SHOWN] + "…"
        count = len(self.text)
        return f"{count:,} character{'s' if count > 1 else ''} of message {self.message}: {shown!r}"


def find_omissions(
    row: Conversation, rendered: TrainingText, renderer: DatedRenderer
) -> tuple[Omission, ...]:
    """What the template leaves out; white space is not compared, which templates trim and change."""
    thoughts = [
        Omission(number, message.reasoning.strip())
        for number, message in enumerate(row.messages, start=1)
        if message.reasoning and message.reasoning.strip() not in rendered.text
    ]
    contents = [message.content.strip() for message in row.messages]
    if _has_all_in_order(contents, rendered.text):
        return tuple(thoughts)
    repeats = Counter(contents)
    found = [
        Omission(number, lost)
        for number, (message, content) in enumerate(zip(row.messages, contents, strict=True), start=1)
        if rendered.text.count(content) < repeats[content]
        if not (message.role == "tool" and _is_in_json(content, rendered.text))
        if (lost := _find_lost(row.messages, number - 1, rendered, renderer))
    ]
    return tuple(sorted([*thoughts, *found], key=lambda omission: omission.message))


def _is_in_json(content: str, text: str) -> bool:
    """Whether a result is in the text as a string of JSON, as Llama 3.1 and gpt-oss have it."""
    return any(json.dumps(content, ensure_ascii=ascii_only)[1:-1] in text for ascii_only in (False, True))


def _has_all_in_order(contents: Sequence[str], text: str) -> bool:
    """Whether the text has the content of every message, one after the other, as most templates write it."""
    place = 0
    for content in contents:
        place = text.find(content, place)
        if place < 0:
            return False
        place += len(content)
    return True


def _find_lost(
    messages: Sequence[Message], index: int, rendered: TrainingText, renderer: DatedRenderer
) -> str:
    """The part of a message's content that is not where the template renders it."""
    content = messages[index].content
    if messages[index].tool_calls:
        parts = [part.strip() for part in _THOUGHT_TAGS.split(content)]
        return "" if all(part in rendered.text for part in parts) else content.strip()
    is_prompt = bool(rendered.border) and index < len(messages) - 1
    turns, text = (messages[:-1], rendered.prompt) if is_prompt else (messages, rendered.text)
    pieces = renderer.render_around(turns, [index], is_prompt=is_prompt)
    if pieces is None or not text.endswith(pieces[1]):
        return content.strip()
    # Where the text begins otherwise, the answer's thought is in the place of an inserted one.
    begin = len(pieces[0]) if text.startswith(pieces[0]) else 0
    return _subtract(content, text[begin : len(text) - len(pieces[1])]).strip()


def _subtract(content: str, shown: str) -> str:
    """The content without what it ends with, and then begins with, of what is shown."""
    places = [place for place, letter in enumerate(content) if not letter.isspace()]
    letters, shown = _squeeze(content), _squeeze(shown)
    limit = min(len(letters), len(shown))
    tail = next((size for size in range(limit) if letters[-1 - size] != shown[-1 - size]), limit)
    limit -= tail
    head = next((size for size in range(limit) if letters[size] != shown[size]), limit)
    lost = places[head : len(places) - tail]
    return content[lost[0] : lost[-1] + 1] if lost else ""


def _squeeze(text: str) -> str:
    return "".join(text.split())
