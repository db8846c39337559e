"""Where in a rendered conversation the assistant's words stand, as `{% generation %}` markers say.

A template without markers may have a twin among our own: one that renders the same text and has them. The
twin only points; the text, its tokens and the template that is kept are the model's own.
"""

import re
import threading
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from worker.templates.families import TEMPLATES
from worker.templates.renderer import (
    REFUSALS,
    Span,
    TokenNames,
    Turn,
    as_dicts,
    end_of_turn,
    render_text,
    template_of,
    token_names,
)

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SAMPLE = [
    {"role": "user", "content": "question 1"},
    {"role": "assistant", "content": "answer 1"},
    {"role": "user", "content": "question 2"},
    {"role": "assistant", "content": "answer 2"},
]
# transformers keeps one compiled template for each text, and the places of markers in that object: a comment
# makes it one that only this module uses, the lock makes it used by one thread.
_OURS = "{# places #}"
_tracking = threading.Lock()


def find_assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Turn], text: str
) -> list[Span] | None:
    """The characters of `text`, which is these messages rendered, that are for the assistant to write.

    Each span takes the end-of-turn token in, also where the markers leave it out. None: nothing marks them.
    """
    template, names = template_of(tokenizer), token_names(tokenizer)
    marking = _find_marking(template, names) if template else None
    if marking is None:
        return None
    try:
        marked, spans = _render_marked(marking, names, as_dicts(messages))
    except REFUSALS:
        return None
    if marked != text or not spans:
        return None
    end = end_of_turn(tokenizer)
    return [_with_end(text, span, end) for span in spans]


def has_markers(template: str) -> bool:
    """Whether the template says itself what the assistant writes."""
    return _MARKER.search(template) is not None


@lru_cache(maxsize=64)
def _find_marking(template: str, names: TokenNames) -> str | None:
    """The template itself where its markers work, or its twin."""
    try:
        text, _spans = render_text(template, names, _SAMPLE)
    except REFUSALS:
        return None
    candidates = [template] if has_markers(template) else list(TEMPLATES.values())
    return next((one for one in candidates if _marks_answers(one, names, text)), None)


def _marks_answers(template: str, names: TokenNames, text: str) -> bool:
    try:
        marked, spans = _render_marked(template, names, _SAMPLE)
    except REFUSALS:
        return False
    found = [marked[start:end] for start, end in spans]
    return marked == text and all(any(answer in one for one in found) for answer in ("answer 1", "answer 2"))


def _render_marked(
    template: str, names: TokenNames, messages: list[dict[str, str]]
) -> tuple[str, list[Span]]:
    with _tracking:
        return render_text(template.removesuffix("\n") + _OURS, names, messages, mark=True)


def _with_end(text: str, span: Span, end: str | None) -> Span:
    """The span, lengthened to the end-of-turn token that follows it."""
    after = text[span[1] :]
    if not end or text[: span[1]].rstrip().endswith(end) or not after.lstrip().startswith(end):
        return span
    return span[0], span[1] + len(after) - len(after.lstrip()) + len(end)
