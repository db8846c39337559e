"""The families of causal language models that people tune, each with the configuration of a tiny model.

`DEFAULTS` applies where a configuration has a field of that name. All widths that are quantized are multiples
of 64, the block of NF4. Windows are shorter than the prompts, so that they matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

VOCABULARY_SIZE = 320
CONTEXT_LENGTH = 256
_WINDOW = 16

DEFAULTS: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT_LENGTH,
    "sliding_window": _WINDOW,
    # 0.02, the usual one, makes the attention of so narrow a model uniform and its logits equal.
    "initializer_range": 0.1,
}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_WINDOWED_AND_FULL = ["sliding_attention", "full_attention"]
_LINEAR_AND_FULL = ["linear_attention", "full_attention"]
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SHARED_EXPERT = {**_EXPERTS, "shared_expert_intermediate_size": 64}
_GATED_DELTA = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "layer_types": _LINEAR_AND_FULL,
}
_ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
_LATENT_ATTENTION = {
    **_ROUTED_EXPERTS,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
_MAMBA2_HEADS = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}


@dataclass(frozen=True, eq=False)
class Family:
    """A model family by the name that people use, and transformers' `model_type` of it."""

    name: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = (
    Family("Llama 2", "llama"),
    Family("Llama 3.1 to 3.3", "llama", {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    Family(
        "Llama 4 (text)",
        "llama4_text",
        {
            **_LOCAL_EXPERTS,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 128,
            "attention_chunk_size": 32,
        },
    ),
    Family("SmolLM 1 and 2", "llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    Family("SmolLM 3", "smollm3", {"no_rope_layers": [1, 0]}),
    Family("Qwen 2 and 2.5", "qwen2"),
    Family("Qwen 2 MoE", "qwen2_moe", _SHARED_EXPERT),
    Family("Qwen 3", "qwen3"),
    Family("Qwen 3 MoE", "qwen3_moe", _EXPERTS),
    Family("Qwen 3 Next", "qwen3_next", {**_SHARED_EXPERT, **_GATED_DELTA}),
    Family("Qwen 3.5", "qwen3_5_text", _GATED_DELTA),
    Family("Qwen 3.5 MoE", "qwen3_5_moe_text", {**_SHARED_EXPERT, **_GATED_DELTA}),
    Family("Gemma", "gemma"),
    Family("Gemma 2", "gemma2", {"layer_types": _WINDOWED_AND_FULL, "query_pre_attn_scalar": 16}),
    Family("Gemma 3", "gemma3_text", {"layer_types": _WINDOWED_AND_FULL, "query_pre_attn_scalar": 16}),
    Family(
        "Gemma 3n",
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "intermediate_size": [128] * 4,
            "layer_types": _WINDOWED_AND_FULL * 2,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "vocab_size_per_layer_input": VOCABULARY_SIZE,
            "hidden_size_per_layer_input": 64,
            "laurel_rank": 64,
        },
    ),
    Family(
        "Gemma 4 (text)",
        "gemma4_text",
        {
            "layer_types": _WINDOWED_AND_FULL,
            "vocab_size_per_layer_input": VOCABULARY_SIZE,
            "hidden_size_per_layer_input": 64,
        },
    ),
    Family("Mistral", "mistral"),
    Family("Ministral", "ministral"),
    Family("Ministral 3", "ministral3", {"rope_parameters": _YARN_ROPE | {"llama_4_scaling_beta": 0.1}}),
    Family("Mixtral", "mixtral", _LOCAL_EXPERTS),
    Family("Phi 1 to 2", "phi"),
    Family("Phi-3 and Phi-4", "phi3"),
    Family("Phi-4-mini", "phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 0.75}),
    Family("Phi-3.5-MoE", "phimoe", _LOCAL_EXPERTS),
    Family(
        "gpt-oss",
        "gpt_oss",
        {**_LOCAL_EXPERTS, "layer_types": _WINDOWED_AND_FULL, "rope_parameters": _YARN_ROPE},
    ),
    Family("OLMo", "olmo"),
    Family("OLMo 2", "olmo2"),
    Family("OLMo 3", "olmo3", {"layer_types": _WINDOWED_AND_FULL}),
    Family("OLMoE", "olmoe", {**_EXPERTS, "intermediate_size": 64}),
    Family("FlexOLMo", "flex_olmo", _EXPERTS),
    Family("Granite 3", "granite", {"embedding_multiplier": 12.0, "logits_scaling": 2.0}),
    Family("Granite 3 MoE", "granitemoe", _LOCAL_EXPERTS),
    Family(
        "Granite MoE with a shared expert",
        "granitemoeshared",
        {**_LOCAL_EXPERTS, "shared_intermediate_size": 64},
    ),
    Family(
        "Granite 4 (dense)",
        "granitemoehybrid",
        {
            **_MAMBA2_HEADS,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"],
        },
    ),
    Family(
        "Granite 4 (mixture)",
        "granitemoehybrid",
        {
            **_LOCAL_EXPERTS,
            **_MAMBA2_HEADS,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"],
        },
    ),
    Family("Command R (Cohere)", "cohere"),
    Family("Command R7B (Cohere 2)", "cohere2", {"layer_types": _WINDOWED_AND_FULL}),
    Family("GLM", "glm"),
    Family("GLM-4", "glm4"),
    Family(
        "GLM-4.5 (MoE)",
        "glm4_moe",
        _ROUTED_EXPERTS,
    ),
    Family("GPT-2", "gpt2"),
    Family("GPT-Neo", "gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": _WINDOW}),
    Family("GPT-NeoX and Pythia", "gpt_neox"),
    Family("GPT-J", "gptj", {"rotary_dim": 8}),
    Family("CodeGen", "codegen", {"rotary_dim": 8}),
    Family("StarCoder and SantaCoder", "gpt_bigcode"),
    Family("StarCoder 2", "starcoder2"),
    Family("StableLM", "stablelm"),
    Family("Nemotron and Minitron", "nemotron"),
    Family(
        "Nemotron-H",
        "nemotron_h",
        {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "mlp", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "ssm_state_size": 16,
            "chunk_size": 16,
        },
    ),
    Family("Falcon", "falcon"),
    Family("Falcon-H1", "falcon_h1", {**_MAMBA2_HEADS, "mamba_d_ssm": 128}),
    Family("Falcon Mamba", "falcon_mamba", {"state_size": 16, "time_step_rank": 64}),
    Family("BLOOM", "bloom"),
    Family("MPT", "mpt", {"max_seq_len": CONTEXT_LENGTH}),
    Family("OPT", "opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    Family(
        "LFM2",
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    Family(
        "LFM2 MoE",
        "lfm2_moe",
        {**_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    Family("DeepSeek V2", "deepseek_v2", _LATENT_ATTENTION | {"topk_method": "greedy"}),
    Family("DeepSeek V3 and R1", "deepseek_v3", _LATENT_ATTENTION),
    Family("Mamba", "mamba", {"state_size": 16, "time_step_rank": 64}),
    Family(
        "Mamba 2",
        "mamba2",
        {"num_heads": 8, "state_size": 16, "n_groups": 1, "chunk_size": 16},
    ),
    Family("RecurrentGemma", "recurrent_gemma", {"block_types": ["recurrent", "attention"], "lru_width": 64}),
    Family("Exaone 4", "exaone4", {"layer_types": _WINDOWED_AND_FULL}),
    Family("ERNIE 4.5", "ernie4_5"),
    Family(
        "ERNIE 4.5 MoE",
        "ernie4_5_moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 64},
    ),
    Family("Hunyuan", "hunyuan_v1_dense"),
    Family("Hunyuan MoE", "hunyuan_v1_moe", {"num_experts": 4, "moe_topk": 2}),
    Family("Seed-OSS", "seed_oss"),
    Family("Helium", "helium"),
    Family("Apertus", "apertus", {"rope_parameters": _LLAMA3_ROPE}),
    Family("Arcee", "arcee"),
    Family("nanochat", "nanochat"),
    Family("Persimmon", "persimmon"),
    Family("dots.llm1", "dots1", {**_ROUTED_EXPERTS, "first_k_dense_replace": 1}),
    Family("MiniMax", "minimax", {**_LOCAL_EXPERTS, "layer_types": _LINEAR_AND_FULL, "block_size": 16}),
    Family(
        "Jamba",
        "jamba",
        {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 16,
            "mamba_dt_rank": 64,
        },
    ),
    Family("Bamba", "bamba", {**_MAMBA2_HEADS, "attn_layer_indices": [1]}),
    Family(
        "Zamba",
        "zamba",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "num_key_value_heads": 4,
            "mamba_d_state": 16,
            "mamba_dt_rank": 64,
        },
    ),
    Family(
        "Zamba 2",
        "zamba2",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "num_key_value_heads": 4,
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "n_mamba_heads": 8,
            "mamba_d_state": 16,
            "mamba_ngroups": 1,
            "chunk_size": 16,
            "adapter_rank": 64,
        },
    ),
)


def find_families(names: Sequence[str] | None) -> list[Family]:
    """The families whose name or `model_type` is among these; all where none are given.

    Raises ValueError for a name that no family has.
    """
    if not names:
        return list(FAMILIES)
    known = {label for family in FAMILIES for label in (family.name, family.model_type)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"No family is called {', '.join(unknown)}. There are: {', '.join(sorted(known))}.")
    return [family for family in FAMILIES if family.name in names or family.model_type in names]
