"""Why base models and adapters need the general path, by their settings."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, PretrainedConfig

from worker.models.serving_path import find_model_obstacle, find_obstacles

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def obstacles(config: PretrainedConfig, *, load_in_4bit: bool = False, **lora: Any) -> list[str]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    return find_obstacles(adapted, load_in_4bit=load_in_4bit)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ({}, []),
        ({"use_rslora": True, "target_modules": "all-linear"}, []),
        ({"use_dora": True, "bias": "lora_only"}, ["lora.use_dora", "lora.bias"]),
        ({"modules_to_save": ["lm_head"]}, ["lora.modules_to_save"]),
        ({"target_modules": ["embed_tokens"]}, ["lora.target_modules (the embedding layer)"]),
    ],
)
def test_an_adapters_settings_decide(lora: dict[str, Any], expected: list[str]) -> None:
    assert obstacles(LlamaConfig(**SIZES, intermediate_size=64), **lora) == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_transposed_layers_are_linear_ones_in_4_bits() -> None:
    config = GPT2Config(**SIZES)
    lora = {"fan_in_fan_out": True, "target_modules": ["c_attn"]}

    assert obstacles(config, **lora) == ["lora.target_modules (transposed layers)"]
    assert obstacles(config, load_in_4bit=True, **lora) == []


def test_a_base_model_decides_by_its_layers() -> None:
    assert find_model_obstacle(LlamaConfig(**SIZES)) is None
    assert find_model_obstacle(MambaConfig()) == "layers that are not attention alone"
