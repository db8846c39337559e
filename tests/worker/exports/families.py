"""Tiny random models of the families that GGUF exports support, and tokenizers of both kinds."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tests.tiny_model import TEMPLATE

_TEXT = ["How do I cancel a job? Send POST to the jobs endpoint, then read its events and the adapter."] * 4
# Qwen's tokenizer adds <|endoftext|> where it is missing.
_CONTROLS = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "tied-llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "biased-llama": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "gemma2": (Gemma2Config, _GEMMA),
    "gemma3": (Gemma3TextConfig, _GEMMA),
    "phi3": (Phi3Config, {}),
}


def make_family(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Path:
    """Write a model folder. Norms and biases are random, so that a change of them changes the logits."""
    kind, own = CONFIGS[name]
    config = kind(**{**_SIZES, "vocab_size": len(tokenizer), **own, **options})
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif "embed" not in parameter_name:
            # Larger than initial weights, so that each layer affects the logits.
            parameter.data *= 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A SentencePiece BPE tokenizer with byte fallback, as of Llama 2 and Mistral."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    controls = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=controls, show_progress=False)
    # SentencePiece splits words at spaces in training only.
    backend.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    backend.train_from_iterator(_TEXT, trainer)
    backend.pre_tokenizer = None
    return _wrap(backend, specials=["<unk>", "<s>", "</s>"])


def byte_level_tokenizer(pattern: pre_tokenizers.PreTokenizer | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as of GPT-2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pattern or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=341,
        special_tokens=_CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT, trainer)
    return _wrap(backend, specials=_CONTROLS)


def _wrap(backend: Tokenizer, specials: list[str]) -> PreTrainedTokenizerFast:
    settings = json.loads(backend.to_str())
    # The byte tokens were special only for the trainer.
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] in specials]
    restored = Tokenizer.from_str(json.dumps(settings))
    restored.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=restored,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )
