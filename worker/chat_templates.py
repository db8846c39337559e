"""Render a conversation as text, and text as token ids: the one renderer of training and serving.

A template may write its special tokens itself, so rendered text is tokenized without adding any: a second
beginning-of-sequence token would be unlike anything the model has seen.
"""

from collections.abc import Sequence
from typing import Protocol, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from app.core.errors import InvalidRequest

# For base models that come without a template: plain, and every turn ends with the model's own end token.
FALLBACK_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'].capitalize() + ': ' + message['content'].strip() }}"
    "{{ (eos_token or '') if message['role'] == 'assistant' else '' }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class Turn(Protocol):
    """A message, whichever side of the service it comes from."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


def ensure_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a tokenizer without a chat template the fallback; answers whether it was needed."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = FALLBACK_TEMPLATE
    return True


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Turn], *, add_generation_prompt: bool
) -> str:
    """The conversation as the model reads it.

    Raises InvalidRequest where the template refuses it (a system turn it does not know, say).
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise InvalidRequest(f"The model's chat template refuses this conversation: {error}") from error
    return cast(str, text)


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of rendered text, with no special token added."""
    return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that no template rendered, to be continued: with one beginning token where the
    tokenizer adds it, also where the text spells it out, and no end token that the text does not have.
    """
    input_ids = cast(list[int], tokenizer(text, add_special_tokens=True)["input_ids"])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None and input_ids[:2] == [begin, begin]:
        input_ids = input_ids[1:]
    if end is not None and input_ids[-1:] == [end] and not text.endswith(str(tokenizer.eos_token)):
        input_ids = input_ids[:-1]
    return input_ids


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_eos: int | Sequence[int] | None) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    named = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or [])
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return {*named, *own}
