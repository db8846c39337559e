"""Chooses the chat template of a base model, and checks a job's own one.

In order: the job's `chat_template`, the model's own, that of the model's family, a plain one. Training,
previews and serving all use this choice.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Conversation, Message
from app.core.errors import InvalidRequest
from app.core.errors.jobs import TemplateMismatch
from worker.models.files.reading import read_json_object
from worker.templates.assistant_spans import find_assistant_spans, has_markers
from worker.templates.families import PLAIN, find_family
from worker.templates.renderer import (
    DatedRenderer,
    control_tokens,
    encode_plain,
    encode_rendered,
    template_of,
    token_names,
)
from worker.templates.tools.form import find_function_template
from worker.templates.training_text import render_for_training

_CONVERSATION = [
    Message("user", "question 1"),
    Message("assistant", "answer 1"),
    Message("user", "question 2"),
    Message("assistant", "answer 2"),
]
_PARAM = "chat_template"


class TemplateSource(StrEnum):
    """The origin of a chat template."""

    JOB = "job"
    MODEL = "model"
    FAMILY = "family"
    PLAIN = "plain"


@dataclass(frozen=True)
class TemplateChoice:
    """A template and its origin."""

    template: str
    source: TemplateSource


def choose_template(
    own: str | None, *, wanted: str | None, model_type: str | None, tokens: Collection[str]
) -> TemplateChoice:
    """Choose a template: `own` is the tokenizer's, `wanted` the job's; `tokens` are the control tokens."""
    if wanted is not None:
        return TemplateChoice(wanted, TemplateSource.JOB)
    if own:
        return TemplateChoice(own, TemplateSource.MODEL)
    family = find_family(model_type, tokens)
    if family is not None:
        return TemplateChoice(family.template, TemplateSource.FAMILY)
    return TemplateChoice(PLAIN, TemplateSource.PLAIN)


def set_template(
    tokenizer: PreTrainedTokenizerBase, *, model_type: str | None = None, wanted: str | None = None
) -> TemplateSource:
    """Set the tokenizer's chat template.

    Raises InvalidRequest where the job's template, `wanted`, is unusable.
    """
    choice = choose_template(
        _own_template(tokenizer), wanted=wanted, model_type=model_type, tokens=control_tokens(tokenizer)
    )
    tokenizer.chat_template = choice.template
    if choice.source is TemplateSource.JOB:
        _check(tokenizer)
    return choice.source


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template; one of two where it has another for functions, as Hermes and Command R do."""
    templates = tokenizer.chat_template
    with_functions = templates.get("tool_use") if isinstance(templates, dict) else None
    default = template_of(tokenizer)
    if with_functions is None or default is None:
        return default
    return "{%- if tools %}" + with_functions + "{%- else %}" + default + "{%- endif %}"


def adopt_function_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the plain form of functions a part of the tokenizer's template where it does not know them.

    Nothing is rendered differently; an adapter's folder has the whole template then, for other programs.
    """
    template = template_of(tokenizer)
    if template is not None:
        tokenizer.chat_template = find_function_template(template, token_names(tokenizer))


def read_model_type(folder: Path) -> str | None:
    """The `model_type` in a base model's config.json; that of the language model for multimodal models.

    Raises ModelUnreadable.
    """
    config = read_json_object(folder / "config.json")
    text_config = config.get("text_config")
    found = (text_config if isinstance(text_config, dict) else config).get("model_type")
    return found if isinstance(found, str) else None


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Render a sample conversation with a job's template. Raises InvalidRequest that names the problem."""
    renderer = DatedRenderer(tokenizer, datetime.now(UTC))
    for length in (2, 4):
        messages = _CONVERSATION[:length]
        text = renderer.render(messages)
        missing = next((message.content for message in messages if message.content not in text), None)
        if missing:
            raise _refuse(f"leaves out a turn: {missing!r} is not in what it renders")
        prompt = renderer.render(messages[:-1], is_prompt=True)
        try:
            render_for_training(Conversation(tuple(messages)), renderer)
        except TemplateMismatch as error:
            raise _refuse(
                "renders the prompt of an answer (add_generation_prompt) unlike the beginning of the whole "
                f"conversation: {prompt!r} and {text!r}"
            ) from error
        _check_markers(renderer, messages, text, prompt)
    _check_beginning(tokenizer, renderer.render(_CONVERSATION[:2]))


def _check_markers(renderer: DatedRenderer, messages: list[Message], text: str, prompt: str) -> None:
    if not has_markers(template_of(renderer.tokenizer) or ""):
        return
    spans = find_assistant_spans(renderer.tokenizer, messages, text, moment=renderer.moment)
    if spans is None:
        raise _refuse("has {% generation %} markers that do not enclose the assistant's text")
    unlearned = text[len(prompt) : spans[-1][0]] if text.startswith(prompt) else ""
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
