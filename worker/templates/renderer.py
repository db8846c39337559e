"""Renders conversations as text, and text as token ids: the one renderer of training and serving.

A chat template may write special tokens itself, so rendered text is tokenized without adding any: a second
beginning-of-sequence token would never occur in training.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import Message
from app.core.errors import InvalidRequest, TunesmithError
from app.core.errors.base_models import ModelUnreadable
from worker.models.files.error_text import describe
from worker.models.files.reading import is_caused_by_content
from worker.templates.clock import ANY_MOMENT
from worker.templates.rendering.process import Span, TemplateRefused
from worker.templates.rendering.text import TokenNames, render_text
from worker.templates.tools.form import find_form, find_function_template
from worker.templates.tools.messages import (
    MessageForm,
    Turn,
    adapt,
    as_dicts,
    as_template_tools,
    uses_functions,
)
from worker.templates.tools.plain import has_plain_form

_APPLY_TEMPLATE = PreTrainedTokenizerBase.apply_chat_template
_SHOWN_LETTERS = 40
_QUESTION = {"role": "user", "content": "question"}
# Private-use characters: no template changes their case or trims them, and no text begins with them.
_PLACEHOLDER = "\uf8f0\uf8f1\uf8f2"
# In the place of an argument: a number, which templates write without quotes.
_ARGUMENT = "918273645546372819"
_ANSWER = {"role": "assistant", "content": "answer"}


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that conversations are rendered with; the one called default where there are several."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of the chat template that rows are rendered with."""
    return hashlib.sha256((template_of(tokenizer) or "").encode()).hexdigest()


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Turn],
    *,
    add_generation_prompt: bool,
    moment: datetime | None = None,
    tools: Sequence[FunctionTool] = (),
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The conversation as the model reads it, with the moment's date where the template prints one.

    `tools` are the functions that the assistant may call, `variables` others of the template's, such as
    `enable_thinking`.

    Without a moment the date is today's, as in serving.

    Raises InvalidRequest where there is no message, or the template refuses them (a system turn it does not
    know, say), and TemplateExceedsLimits.
    """
    if not messages:
        raise InvalidRequest(
            "A conversation has at least one message.", hint="Add one, or leave the row out."
        )
    template = template_of(tokenizer)
    try:
        if template is None or type(tokenizer).apply_chat_template is not _APPLY_TEMPLATE:
            # Tokenizers of Mistral's library render without a template.
            form = MessageForm()
            return cast(
                str,
                tokenizer.apply_chat_template(
                    as_dicts(adapt(messages, form), form),
                    tools=as_template_tools(tools),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **variables,
                ),
            )
        prepared = prepare(template, token_names(tokenizer), messages, tools)
        text, _spans = render_text(
            prepared.template,
            token_names(tokenizer),
            prepared.dicts,
            moment=moment,
            add_generation_prompt=add_generation_prompt,
            variables={**variables, **prepared.variables},
        )
    except TunesmithError:
        raise
    except Exception as error:
        hint = "Train with a chat_template of your own, or change the conversation."
        if any(message.role == "system" for message in messages):
            hint = (
                "Where the template knows no system turn, put its text into the first user turn, or train "
                "with a chat_template of your own."
            )
        raise InvalidRequest(
            f"The chat template refuses this conversation: {describe(error)}", hint=hint
        ) from error
    return text


@dataclass(frozen=True)
class Prepared:
    """What is rendered: a template, in front of which may be the plain form, its messages and variables."""

    template: str
    dicts: list[dict[str, Any]]
    variables: dict[str, Any]


def prepare(
    template: str, names: TokenNames, messages: Sequence[Turn], tools: Sequence[FunctionTool]
) -> Prepared:
    """A conversation as the template reads it. Raises InvalidRequest for calls that it can't write."""
    if uses_functions(messages, tools):
        template = find_function_template(template, names)
        form = find_form(template, names)
    else:
        has_reasoning = any(message.reasoning is not None for message in messages)
        form = find_form(template, names) if has_reasoning else MessageForm()
    dicts = as_dicts(adapt(messages, form), form)
    return Prepared(template, dicts, {"tools": as_template_tools(tools)} if tools else {})


def form_of(tokenizer: PreTrainedTokenizerBase) -> MessageForm:
    """How conversations with functions, calls or reasoning are rendered."""
    template = template_of(tokenizer)
    if template is None:
        return MessageForm()
    names = token_names(tokenizer)
    return find_form(find_function_template(template, names), names)


def writes_plain_functions(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether functions or calls are rendered as plain text: the template has no place for them."""
    template = template_of(tokenizer)
    return template is not None and has_plain_form(find_function_template(template, token_names(tokenizer)))


@dataclass(frozen=True)
class DatedRenderer:
    """Renders conversations with a tokenizer's chat template, all with the date of one moment.

    `tools` are the functions of all of them.
    """

    tokenizer: PreTrainedTokenizerBase
    moment: datetime
    tools: tuple[FunctionTool, ...] = ()

    def render(self, messages: Sequence[Message], *, is_prompt: bool = False) -> str:
        """The conversation, or the prompt for its next answer. Raises InvalidRequest where it is refused."""
        return render(
            self.tokenizer,
            messages,
            add_generation_prompt=is_prompt,
            moment=self.moment,
            tools=self.tools,
        )

    def render_around(
        self, messages: Sequence[Message], indexes: Sequence[int], *, is_prompt: bool = False
    ) -> list[str] | None:
        """The text before, between and after the content of some messages, found with other content in place.

        Of a message with calls an argument of the last call is changed: many templates leave out its content.
        None where the template leaves out one of them. Raises InvalidRequest where the template refuses the
        conversation or repeats the content.
        """
        changed = [
            _with_placeholder(message) if index in indexes else message
            for index, message in enumerate(messages)
        ]
        rendered = self.render(changed, is_prompt=is_prompt).replace(_ARGUMENT, _PLACEHOLDER)
        pieces = rendered.split(_PLACEHOLDER)
        if len(pieces) > len(indexes) + 1:
            numbers = " or ".join(str(index + 1) for index in indexes)
            raise InvalidRequest(f"the chat template renders message {numbers} more than once.")
        return pieces if len(pieces) == len(indexes) + 1 else None


def _with_placeholder(message: Message) -> Message:
    if not message.tool_calls:
        return replace(message, content=_PLACEHOLDER)
    *others, last = message.tool_calls
    changed = last.model_copy(update={"arguments": {**last.arguments, "argument": int(_ARGUMENT)}})
    return replace(message, tool_calls=(*others, changed))


@dataclass(frozen=True)
class Encoded:
    """Token ids, and the characters of each where they were requested."""

    input_ids: list[int]
    offsets: list[Span]


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool, with_offsets: bool = False
) -> Encoded:
    """Tokenize a text.

    Raises InvalidRequest for text that is no Unicode, ModelUnreadable where the tokenizer fails.
    """
    options = {"return_offsets_mapping": True} if with_offsets else {}
    try:
        found = tokenizer(text, add_special_tokens=add_special_tokens, **options)
    except BaseException as error:
        if not is_caused_by_content(error):
            raise
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InvalidRequest(
                "The text has half of a character: a surrogate without its pair.",
                hint="Write the text as UTF-8; in JSON, an emoji is one character or two \\u escapes.",
            ) from error
        name = Path(tokenizer.name_or_path).name
        raise ModelUnreadable(
            f"The tokenizer in {name!r} can't encode {text[:_SHOWN_LETTERS]!r}: {describe(error)}.",
            hint="Copy the tokenizer's files from the model's repository again, or name another base model.",
        ) from error
    return Encoded(found["input_ids"], found.get("offset_mapping", []))


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of rendered text, with no special token added."""
    return encode(tokenizer, text, add_special_tokens=False).input_ids


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of text that no template rendered and that the model continues.

    They have one beginning token where the tokenizer adds one, also where the text contains it, and no end
    token that the text does not contain.
    """
    input_ids = encode(tokenizer, text, add_special_tokens=True).input_ids
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None and input_ids[:2] == [begin, begin]:
        input_ids = input_ids[1:]
    if end is not None and input_ids[-1:] == [end] and not text.endswith(str(tokenizer.eos_token)):
        input_ids = input_ids[:-1]
    return input_ids


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_eos: int | Sequence[int] | None) -> set[int]:
    """The tokens that end an answer: the tokenizer's, those that the template writes after an answer and
    after calls (which a base model's settings do not name), and those of the model's generation settings.
    """
    named = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or [])
    # Not by the tokenizer's `vocab`: that builds a dictionary of the whole vocabulary, each time.
    ends = cast(list[int], tokenizer.convert_tokens_to_ids(list(control_ends(tokenizer))))
    return {*named, *ends}


def control_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The control tokens that end an answer: the tokenizer's, and those that the template writes."""
    ends = (tokenizer.eos_token, end_of_turn(tokenizer), end_of_calls(tokenizer))
    return tuple(str(end) for end in ends if end)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The control token that the template writes after an answer, or None."""
    template = template_of(tokenizer)
    return _find_end(template, token_names(tokenizer), control_tokens(tokenizer)) if template else None


def end_of_calls(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The control token that the template writes after an answer of calls (gpt-oss has its own), or None."""
    template = template_of(tokenizer)
    return _find_call_end(template, token_names(tokenizer), control_tokens(tokenizer)) if template else None


def token_names(tokenizer: PreTrainedTokenizerBase) -> TokenNames:
    """The tokens that a template may name, as in `bos_token`."""
    return tuple(
        (name, token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    )


# Reading a tokenizer's added tokens takes a millisecond, too long for each row.
_CONTROL_TOKENS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, ...]] = WeakKeyDictionary()


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text of every added token and of the end token."""
    if tokenizer not in _CONTROL_TOKENS:
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        end = [tokenizer.eos_token] if tokenizer.eos_token else []
        _CONTROL_TOKENS[tokenizer] = tuple(dict.fromkeys(added + end))
    return _CONTROL_TOKENS[tokenizer]


@lru_cache(maxsize=64)
def _find_end(template: str, names: TokenNames, controls: tuple[str, ...]) -> str | None:
    try:
        text, _spans = render_text(template, names, [_QUESTION, _ANSWER], moment=ANY_MOMENT)
    except TemplateRefused:
        return None
    after = text.rpartition(_ANSWER["content"])[2].lstrip()
    return max((token for token in controls if after.startswith(token)), key=len, default=None)


@lru_cache(maxsize=64)
def _find_call_end(template: str, names: TokenNames, controls: tuple[str, ...]) -> str | None:
    """The last control token of a turn of calls, unless it stands between two calls as well."""
    form = find_form(find_function_template(template, names), names)
    calls = [
        ToolCall(name="function", arguments={"argument": int(_ARGUMENT)}, id=f"call_000{place}")
        for place in range(1 if form.has_one_call else 2)
    ]
    turns = [Message("user", "question"), Message("assistant", "", tool_calls=tuple(calls))]
    try:
        prepared = prepare(template, names, turns, ())
        text, _spans = render_text(prepared.template, names, prepared.dicts, moment=ANY_MOMENT)
    except TemplateRefused:
        return None
    *between, after = text.split(_ARGUMENT)
    end = max((token for token in controls if after.rstrip().endswith(token)), key=len, default=None)
    return None if end is None or any(end in piece for piece in between[1:]) else end
