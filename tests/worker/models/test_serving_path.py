"""Why base models and adapters need the general path, by their settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5_MoeConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from worker.models.serving_path import find_model_obstacle, find_obstacles, find_parameters_obstacle

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


MIXTURE: dict[str, Any] = {
    **{"intermediate_size": 64, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0, "moe_intermediate_size": 16},
    **{"num_key_value_heads": 2, "head_dim": 8},
}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("config", "targets", "expected"),
    [
        (Qwen3MoeConfig, EXPERTS, []),
        (Qwen3MoeConfig, ["gate.weight", "down_proj"], []),
        (Qwen3MoeConfig, ["q_norm.weight"], ["lora.target_parameters"]),
        # Biases, and stored the other way round.
        (GptOssConfig, EXPERTS, ["lora.target_parameters"]),
        (Ernie4_5_MoeConfig, EXPERTS, []),
        # The router's weight is converted to float32 before it is multiplied.
        (Ernie4_5_MoeConfig, ["gate.weight"], ["lora.target_parameters"]),
    ],
)
def test_parameters_of_experts_and_routers_are_applied_where_their_code_is_known(
    config: type[PretrainedConfig], targets: list[str], expected: list[str], tmp_path: Path
) -> None:
    made = config(**SIZES, **MIXTURE)
    made.save_pretrained(tmp_path)

    if targets != ["q_norm.weight"]:  # PEFT refuses vectors.
        assert obstacles(made, target_parameters=targets, target_modules=[]) == expected
    parameters = [f"model.layers.0.{'self_attn' if 'norm' in one else 'mlp'}.{one}" for one in targets]
    parameters = [one.replace("mlp.down_proj", "mlp.experts.down_proj") for one in parameters]
    assert bool(find_parameters_obstacle(tmp_path, parameters)) == bool(expected)
