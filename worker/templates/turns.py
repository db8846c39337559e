"""Finds the assistant's turns in the text of a conversation: what the model must generate of it.

A turn begins where its generation prompt ends, and ends with the end of turn at which serving stops. The end
of its content is found by rendering the conversation again with other content in its place: what follows the
content stays the same, also where a template trims the content or leaves out its thoughts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.core.datasets.rows import Conversation, Message
from app.core.errors import InvalidRequest
from worker.templates.assistant_spans import find_assistant_spans
from worker.templates.differences import show_difference
from worker.templates.headers import find_answer_start
from worker.templates.renderer import DatedRenderer, control_tokens, end_of_turn
from worker.templates.rendering.process import Span
from worker.templates.training_text import TrainingText

_HINT = (
    "Set training.assistant_only_loss to false and leave out message weights, or give the job a "
    "chat_template with {% generation %} markers."
)


@dataclass(frozen=True)
class AssistantTurn:
    """Which characters of the text the loss counts of a turn, and its weight."""

    spans: tuple[Span, ...]
    weight: int


def find_turns(row: Conversation, rendered: TrainingText, renderer: DatedRenderer) -> list[AssistantTurn]:
    """The assistant's turns in the text.

    Raises InvalidRequest where the template leaves a turn out, or where it is not certain what belongs to it.
    """
    marked = find_assistant_spans(
        renderer.tokenizer, row.messages, rendered.text, moment=renderer.moment, tools=renderer.tools
    )
    try:
        turns = _find_by_content(row.messages, rendered, renderer)
    except InvalidRequest:
        weights = [message.weight for message in row.messages if message.role == "assistant"]
        if marked is None or len(marked) != len(weights):
            raise
        return [AssistantTurn((span,), weight) for span, weight in zip(marked, weights, strict=True)]
    if marked is None:
        return turns
    clipped = [AssistantTurn(tuple(_clip(marked, turn.spans)), turn.weight) for turn in turns]
    if not end_of_turn(renderer.tokenizer) and clipped[-1].spans:
        # An end token follows the text; the model also generates the text before it.
        *others, (start, _end) = clipped[-1].spans
        clipped[-1] = replace(clipped[-1], spans=(*others, (start, len(rendered.text))))
    return clipped


def _clip(marked: Sequence[Span], turn: Sequence[Span]) -> list[Span]:
    """The marked spans within a turn: a template's markers may enclose what the prompt has already."""
    clipped = [(max(start, begin), min(end, stop)) for start, end in marked for begin, stop in turn]
    return [(start, end) for start, end in clipped if start < end]


def _find_by_content(
    messages: Sequence[Message], rendered: TrainingText, renderer: DatedRenderer
) -> list[AssistantTurn]:
    last = len(messages) - 1
    turns = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        if index == last or not rendered.border:
            span = _find_span(messages, index, rendered.text, renderer, border=rendered.border)
        else:
            span = _find_span(messages[:-1], index, rendered.prompt, renderer)
        if span is None and message.weight:
            raise InvalidRequest(
                f"the chat template leaves out message {index + 1}, so it can't be learned.",
                hint='Give that message "weight": 0, or give the job another chat_template.',
            )
        turns.append(AssistantTurn((span,) if span else (), message.weight))
    return turns


def _find_span(
    messages: Sequence[Message], index: int, text: str, renderer: DatedRenderer, *, border: int | None = None
) -> Span | None:
    """The span of one turn in the text of the messages; None where the template leaves it out.

    Without a border the text is a prompt; else it ends with an answer, the last one, that begins there.
    """
    is_prompt = border is None
    pieces = renderer.render_around(messages, [index], is_prompt=is_prompt)
    if pieces is None:
        return None
    before, after = pieces
    is_last = index == len(messages) - 1 and not is_prompt
    if messages[index].tool_calls:
        # Text after an argument depends on its type, so the content reaches to the end of the turn.
        after = after[_count_calls_end(messages, index, after, renderer) :]
    content_end = len(text) - len(after)
    start = border if border and is_last else _find_start(messages, index, before, renderer, is_prompt)
    is_same = text.endswith(after) and (start == border or text.startswith(before[:start]))
    if not is_same or start > content_end:
        raise InvalidRequest(
            f"it is not certain which tokens are those of message {index + 1}: the chat template "
            "renders the others differently where its content is another one. "
            f"{show_difference(before + after, text)}",
            hint=_HINT,
        )
    if messages[index].tool_calls:
        return start, content_end
    return start, content_end + _count_end(after, renderer, is_last=is_last)


def _find_start(
    messages: Sequence[Message], index: int, before: str, renderer: DatedRenderer, is_prompt: bool
) -> int:
    """Where the generation prompt of a turn ends, or else its content begins; `before` is the text before."""
    try:
        prompt = renderer.render(messages[:index], is_prompt=True) if index else ""
    except InvalidRequest:
        prompt = ""
    if prompt and before.startswith(prompt):
        return len(prompt)
    start = find_answer_start(messages, index, before, renderer, is_prompt=is_prompt) if index else None
    return len(before) if start is None else start


def _count_end(after: str, renderer: DatedRenderer, *, is_last: bool) -> int:
    """How many characters after the content are the end of the turn.

    Where the template ends no turn, an end token follows the last, and the model generates what is before it.
    An end at which serving does not stop is none: gpt-oss ends the turns of the past with another token.
    """
    end = end_of_turn(renderer.tokenizer)
    if not end:
        return (
            len(after) if is_last else 0
        )  # an end token follows; the model also generates the text before it
    stripped = after.rstrip()
    if is_last and stripped.endswith(control_tokens(renderer.tokenizer)):
        return len(stripped)
    space = len(after) - len(after.lstrip())
    return space + len(end) if after.startswith(end, space) else 0


def _count_calls_end(messages: Sequence[Message], index: int, after: str, renderer: DatedRenderer) -> int:
    """How many characters after the last argument of a turn of calls belong to the turn, its end included.

    They are those that follow the argument where the turn is the last one as well.
    """
    pieces = renderer.render_around(messages[: index + 1], [index])
    alone = pieces[-1] if pieces else ""
    if not end_of_turn(renderer.tokenizer) and index == len(messages) - 1:
        return len(alone)
    common = _common_beginning(after, alone.rstrip())
    if common == alone.rstrip():
        return len(common)
    ends = [
        common.rfind(token) + len(token) for token in control_tokens(renderer.tokenizer) if token in common
    ]
    return max(ends, default=len(common.rstrip()))


def _common_beginning(one: str, other: str) -> str:
    length = min(len(one), len(other))
    return one[: next((place for place in range(length) if one[place] != other[place]), length)]
