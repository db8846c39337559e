"""One whole answer of an engine, joined from its replies. Knows no connection."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.core.engine.messages import (
    Delta,
    Finished,
    MadeToken,
    PromptDelta,
    ReasoningDelta,
    TokenDelta,
    ToolCallDelta,
)


@dataclass(frozen=True)
class GeneratedCall:
    """A call of a function that an answer makes; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class GeneratedAnswer:
    """One whole answer, and what was thought before it.

    `tokens` are those of the text, `thought_tokens` those of `reasoning`, where log-probabilities were
    requested. `prompt` has those of the prompt, where they were requested.
    """

    text: str
    tokens: list[MadeToken] | None
    finished: Finished
    reasoning: str | None = None
    thought_tokens: list[MadeToken] | None = None
    tool_calls: tuple[GeneratedCall, ...] = ()
    prompt: PromptDelta | None = None


def join_answer(deltas: Sequence[Delta], finished: Finished) -> GeneratedAnswer:
    """Returns the answer that the deltas of one request make up."""
    texts = [delta for delta in deltas if isinstance(delta, TokenDelta)]
    thoughts = [delta for delta in deltas if isinstance(delta, ReasoningDelta)]
    return GeneratedAnswer(
        "".join(delta.text for delta in texts),
        [token for delta in texts for token in delta.tokens or []] or None,
        finished,
        reasoning="".join(delta.text for delta in thoughts) or None,
        thought_tokens=[token for delta in thoughts for token in delta.tokens or []] or None,
        tool_calls=_join_calls([delta for delta in deltas if isinstance(delta, ToolCallDelta)]),
        prompt=next((delta for delta in deltas if isinstance(delta, PromptDelta)), None),
    )


def _join_calls(deltas: Sequence[ToolCallDelta]) -> tuple[GeneratedCall, ...]:
    calls: dict[int, GeneratedCall] = {}
    for delta in deltas:
        if delta.is_withdrawn:
            del calls[delta.index]
        elif delta.id is not None:
            calls[delta.index] = GeneratedCall(delta.id, delta.name or "", delta.arguments)
        else:
            before = calls[delta.index]
            calls[delta.index] = replace(before, arguments=before.arguments + delta.arguments)
    return tuple(calls.values())
