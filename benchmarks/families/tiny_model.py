"""Tiny random models of any family, as complete Hugging Face folders, and a tokenizer of bytes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from benchmarks.families.configs import CONTEXT_LENGTH, DEFAULTS, Family

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_model(family: Family, folder: Path) -> None:
    """Write a model with random weights, its tokenizer and chat template; the same values each time."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(family, tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_config(family: Family, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The family's configuration with the tokenizer's special tokens."""
    kind = type(AutoConfig.for_model(family.model_type))
    known = {*kind.__dataclass_fields__, *kind.attribute_map}
    defaults = {name: value for name, value in DEFAULTS.items() if name in known}
    return kind(
        **{**defaults, **family.config},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte and for the marks of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(_SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
