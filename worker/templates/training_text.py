"""A conversation as the text that training reads: the prompt of its last answer as serving renders it, and
that answer.

Most templates render a whole conversation so. Those of reasoning models render a finished one otherwise: the
prompt opens a thought (`<think>`) that a finished answer lacks, or a turn loses its thoughts once another one
follows. Others put the system message into the last turn of the user. Knows no token.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.core.datasets.rows import Conversation, Message
from app.core.errors import InvalidRequest
from app.core.errors.jobs import TemplateMismatch
from worker.templates.differences import show_difference
from worker.templates.headers import EMPTY_THOUGHT, OPENED_THOUGHT, find_answer_start, find_header
from worker.templates.renderer import DatedRenderer

PROMPT_HINT = (
    "With add_generation_prompt, the template must render a conversation without its last answer as the "
    "beginning of the whole conversation. Give the job a chat_template that does."
)
_CLOSED_HINT = (
    "The prompt ends with an empty thought, so that the model answers without thinking, but the answer has a "
    "thought. Leave thoughts out of the answers, or give the job a chat_template whose prompt closes none."
)


@dataclass(frozen=True)
class TrainingText:
    """The text of a conversation; `border` is where the prompt of the last answer ends, 0 without one."""

    text: str
    border: int
    has_empty_thought: bool = False

    @property
    def prompt(self) -> str:
        """The text before the last answer."""
        return self.text[: self.border]


def render_for_training(row: Conversation, renderer: DatedRenderer) -> TrainingText:
    """Render a conversation.

    Raises InvalidRequest where the template refuses it, TemplateMismatch where it renders the prompt of the
    last answer unlike the beginning of the whole and the two can't be joined.
    """
    whole = renderer.render(row.messages)
    try:
        prompt = renderer.render(row.messages[:-1], is_prompt=True)
    except InvalidRequest:
        return TrainingText(whole, 0)
    if whole.startswith(prompt) and not _has_two_thoughts(whole, prompt):
        return TrainingText(whole, len(prompt))
    joined = _go_on_with_thought(row.messages, prompt, renderer) or _join_answer(
        row.messages, prompt, whole, renderer
    )
    if joined is None:
        raise _mismatch(prompt, whole)
    return joined


def _go_on_with_thought(
    messages: Sequence[Message], prompt: str, renderer: DatedRenderer
) -> TrainingText | None:
    """The prompt, whose end opens a thought, and the rest of the answer, or the end of an empty thought.

    None where the prompt opens none, or where the template writes something else before an answer.
    """
    opened = OPENED_THOUGHT.search(prompt)
    if opened is None:
        return None
    tag = opened[0].rstrip()
    answer, is_empty = _begin_with_thought(messages[-1].content, tag)
    rendered = renderer.render([*messages[:-1], replace(messages[-1], content=answer)])
    if rendered.startswith(prompt) and not _has_two_thoughts(rendered, prompt):
        return TrainingText(rendered, len(prompt), is_empty)
    if messages[-1].tool_calls:
        return _end_thought_before_calls(messages, prompt, opened, renderer)
    pieces = renderer.render_around(messages, [len(messages) - 1])
    header = prompt[: opened.start()]
    if pieces is None or not pieces[0].startswith(header):
        return None
    if pieces[0] != header and not EMPTY_THOUGHT.fullmatch(pieces[0], len(header)):
        return None
    rest = answer.removeprefix(tag).removeprefix(opened[0][len(tag) :])
    return TrainingText(prompt + rest + pieces[-1], len(prompt), is_empty)


def _end_thought_before_calls(
    messages: Sequence[Message], prompt: str, opened: re.Match[str], renderer: DatedRenderer
) -> TrainingText | None:
    """The prompt, the rest of the thought or the end of an empty one, and calls as the template writes them.

    None where the template writes something else before calls.
    """
    tag = opened[0].rstrip()
    answer, is_empty = _begin_with_thought(messages[-1].content, tag)
    closing = tag.replace("<", "</")
    thought, _closing, text = answer.partition(closing)
    last = replace(messages[-1], content=text.strip(), reasoning=None)
    whole = renderer.render([*messages[:-1], last])
    header = prompt[: opened.start()]
    if not whole.startswith(header):
        return None
    inserted = EMPTY_THOUGHT.match(whole, len(header))
    rest = thought.removeprefix(tag).removeprefix(opened[0][len(tag) :]) + closing + "\n\n"
    return TrainingText(
        prompt + rest + whole[inserted.end() if inserted else len(header) :], len(prompt), is_empty
    )


def _begin_with_thought(content: str, tag: str) -> tuple[str, bool]:
    """The answer with its thought in front, and whether an empty one was added."""
    closing = tag.replace("<", "</")
    answer = content.lstrip()
    if closing not in answer:
        return f"{tag}\n\n{closing}\n\n{content}", True
    return (answer if answer.startswith(tag) else f"{tag}\n{answer}"), False


def _has_two_thoughts(whole: str, prompt: str) -> bool:
    """Whether the template puts an empty thought before an answer that has a thought of its own."""
    opened = OPENED_THOUGHT.search(prompt)
    inserted = EMPTY_THOUGHT.match(whole, opened.start() if opened else len(prompt))
    return inserted is not None and whole.startswith(f"<{inserted[1]}>", inserted.end())


def _join_answer(
    messages: Sequence[Message], prompt: str, whole: str, renderer: DatedRenderer
) -> TrainingText | None:
    """The prompt and the answer as the whole conversation has it, where what precedes differs in the two.

    None where the answer does not begin as the prompt ends.
    """
    last = len(messages) - 1
    pieces = renderer.render_around(messages, [last])
    start = find_answer_start(messages, last, pieces[0], renderer) if pieces else None
    header = find_header(messages, last, renderer)
    if pieces is None or start is None or not prompt.endswith(header):
        return None
    if not pieces[0][:start].endswith(header) or not whole.startswith(pieces[0][:start]):
        return None
    return TrainingText(prompt + whole[start:], len(prompt))


def _mismatch(prompt: str, whole: str) -> TemplateMismatch:
    shown = show_difference(prompt, whole, expected_name="The prompt:", found_name="the whole:")
    return TemplateMismatch(
        "the chat template renders the prompt of the last answer unlike the beginning of the whole "
        f"conversation. {shown}",
        hint=_CLOSED_HINT if re.search(EMPTY_THOUGHT.pattern + "$", prompt) else PROMPT_HINT,
    )
