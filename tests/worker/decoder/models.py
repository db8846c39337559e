"""Tiny models of the families that worker/decoder computes, with adapters whose B matters."""

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from worker.templates.token_rows import IGNORED
from worker.training.batches import Example

FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3_text": Gemma3TextConfig,
    "phi3": Phi3Config,
}
# Factors on the initial weights, so that the residual stream is as much larger than what the layers add to it
# as in a trained model.
EMBEDDING, WEIGHT, BIAS = 100.0, 4.0, 4.0
_WINDOW = 7  # shorter than the rows, in families that have one


def make_config(family: str) -> PreTrainedConfig:
    shape = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    own = {
        "mistral": {"sliding_window": _WINDOW},
        "qwen2": {"sliding_window": _WINDOW, "use_sliding_window": True, "max_window_layers": 1},
        "gemma3_text": {
            "sliding_window": _WINDOW,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    }
    return FAMILIES[family](**shape, **own.get(family, {}))


def make_model(
    family: str,
    dtype: torch.dtype,
    *,
    is_4bit: bool,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    r: int = 8,
    b_std: float = 0.0,
) -> PeftModel:
    """Weights that bfloat16 holds exactly, with an adapter in float32; `b_std`: 0 for a new one."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(make_config(family), dtype=torch.float32)
    # Gemma multiplies its embeddings itself.
    embedding = EMBEDDING if family != "gemma3_text" else EMBEDDING / 8
    with torch.no_grad():
        for name, weight in base.named_parameters():
            weight.mul_(embedding if "embed" in name else WEIGHT if weight.ndim == 2 else 1.0)
            if name.endswith("bias"):
                weight.normal_(std=BIAS)
            weight.copy_(weight.bfloat16())
    base.to(dtype)
    if is_4bit:
        quantize(base, dtype)
    config = LoraConfig(r=r, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base.requires_grad_(False), config)
    for name, weight in model.named_parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
        if "lora_B" in name and b_std:
            nn.init.normal_(weight, std=b_std)
    return model.train()


def quantize(base: nn.Module, dtype: torch.dtype) -> None:
    for name, linear in list(base.named_modules()):
        if type(linear) is nn.Linear and name != "lm_head":
            shape, has_bias = (linear.in_features, linear.out_features), linear.bias is not None
            packed = bnb.nn.Linear4bit(*shape, bias=has_bias, compute_dtype=dtype, quant_type="nf4")
            packed.load_state_dict(linear.state_dict())
            packed.support_avx512bf16_for_cpu = False
            base.set_submodule(name, packed.to("cpu"))


def make_examples(lengths: tuple[int, ...] = (24, 20, 16)) -> list[Example]:
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 128, (length,), generator=random).tolist() for length in lengths]
    return [Example(input_ids=ids, labels=[IGNORED, *ids[1:]]) for ids in rows]
