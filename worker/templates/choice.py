"""Which chat template a base model is used with, and whether a person's own one can be used at all.

The job's `chat_template` comes first, then the model's own exactly as it was trained, then the one of the
model's family, then a plain one. Training, preview and serving all set it here.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Message
from app.core.errors import InvalidRequest
from worker.templates.families import PLAIN, find_family
from worker.templates.generation_marks import find_assistant_spans, has_markers
from worker.templates.renderer import control_tokens, encode_plain, encode_rendered, render, template_of

_CONVERSATION = [
    Message("user", "question 1"),
    Message("assistant", "answer 1"),
    Message("user", "question 2"),
    Message("assistant", "answer 2"),
]
_PARAM = "chat_template"


class TemplateSource(StrEnum):
    """Where a chat template comes from."""

    JOB = "job"
    MODEL = "model"
    FAMILY = "family"
    PLAIN = "plain"


@dataclass(frozen=True)
class Choice:
    """A template and where it comes from."""

    template: str
    source: TemplateSource


def choose(own: str | None, *, wanted: str | None, model_type: str | None, tokens: Collection[str]) -> Choice:
    """Pick a template: `own` is the tokenizer's, `wanted` the job's, `tokens` are those with a name."""
    if wanted is not None:
        return Choice(wanted, TemplateSource.JOB)
    if own:
        return Choice(own, TemplateSource.MODEL)
    family = find_family(model_type, tokens)
    if family is not None:
        return Choice(family.template, TemplateSource.FAMILY)
    return Choice(PLAIN, TemplateSource.PLAIN)


def set_template(
    tokenizer: PreTrainedTokenizerBase, *, model_type: str | None = None, wanted: str | None = None
) -> TemplateSource:
    """Give a tokenizer the template it is used with. Raises InvalidRequest where `wanted` is of no use."""
    choice = choose(
        template_of(tokenizer), wanted=wanted, model_type=model_type, tokens=control_tokens(tokenizer)
    )
    tokenizer.chat_template = choice.template
    if choice.source is TemplateSource.JOB:
        _check(tokenizer)
    return choice.source


def read_model_type(folder: Path) -> str | None:
    """The `model_type` in a base model's config.json; of its language model where it has several parts."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return (config.get("text_config") or config).get("model_type")


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Render a sample conversation with a person's template. Raises InvalidRequest, naming what is wrong."""
    for length in (2, 4):
        messages = _CONVERSATION[:length]
        text = render(tokenizer, messages, add_generation_prompt=False)
        prompt = render(tokenizer, messages[:-1], add_generation_prompt=True)
        missing = next((message.content for message in messages if message.content not in text), None)
        if missing:
            raise _refuse(f"leaves out a turn: {missing!r} is not in what it renders")
        if not text.startswith(prompt):
            raise _refuse(
                "renders the prompt of an answer (add_generation_prompt) unlike the beginning of the whole "
                f"conversation: {prompt!r} and {text!r}"
            )
        _check_markers(tokenizer, messages, text, prompt)
    _check_beginning(tokenizer, render(tokenizer, _CONVERSATION[:2], add_generation_prompt=False))


def _check_markers(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], text: str, prompt: str
) -> None:
    if not has_markers(template_of(tokenizer) or ""):
        return
    spans = find_assistant_spans(tokenizer, messages, text)
    if spans is None:
        raise _refuse("has {% generation %} markers that do not enclose the assistant's text")
    unlearned = text[len(prompt) : spans[-1][0]]
    if unlearned.strip():
        raise _refuse(
            f"puts {unlearned!r} between the prompt and its {{% generation %}} marker, so the model would "
            "never learn to write it: write it under add_generation_prompt, or inside of the markers"
        )


def _check_beginning(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    begin = tokenizer.bos_token_id
    if begin is None:
        return
    count = encode_rendered(tokenizer, text).count(begin)
    if count > 1:
        raise _refuse(f"writes the beginning token {tokenizer.bos_token!r} {count} times in one exchange")
    if count == 0 and encode_plain(tokenizer, "text")[:1] == [begin]:
        raise _refuse(
            f"leaves out the beginning token {tokenizer.bos_token!r}, which this model expects: begin with "
            "{{ bos_token }}"
        )


def _refuse(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The job's chat template {reason}.",
        param=_PARAM,
        hint="Correct chat_template, or leave it out: the model's own template is used then.",
    )
