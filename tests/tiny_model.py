"""A tiny random Llama as a complete Hugging Face folder of 0.5 MB."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAME = "tiny-llama"
END_OF_TURN = "<|im_end|>"
CONTEXT_LENGTH = 256
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# With a date, as Llama 3.2's.
DATED_TEMPLATE = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{{ bos_token + 'Today Date: ' + date_string + '\\n' }}" + TEMPLATE.replace("{{ bos_token }}", "")
)
_SPECIAL = ["<|begin|>", "<|im_start|>", END_OF_TURN, "<|pad|>"]
_TEXT = "How do I cancel a job? Send POST to the jobs endpoint, then read its events and the adapter."


def make_tiny_model(folder: Path) -> Path:
    """Write the model to `folder/tiny-llama`, the same bytes each time. Returns that path."""
    path = folder / NAME
    tokenizer = _make_tokenizer()
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(_make_config(tokenizer))
    model.save_pretrained(path)
    return path


def _make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_TEXT] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin|>",
        eos_token=END_OF_TURN,
        pad_token="<|pad|>",
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
