"""The mixtures of K-quants: the counts that llama.cpp prints for known models, and rows that do not fit."""

from collections import Counter

import pytest
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from app.core.specs.export import GgufType
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.tensor_types import choose_types, count_bytes, describe_fallbacks
from worker.exports.merged.checkpoint import TensorSpec

LLAMA_2_7B = LlamaConfig()
LLAMA_3_8B = LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
QWEN_0_5B = Qwen2Config(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
LLAMA_70B = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)


def tensors(config: PreTrainedConfig) -> list[TensorSpec]:
    """The matrices of a model of this config, and one vector."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    found = [TensorSpec("model.embed_tokens.weight", (config.vocab_size, hidden))]
    for layer in range(config.num_hidden_layers):
        found += [TensorSpec(f"model.layers.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    found.append(TensorSpec("model.norm.weight", (hidden,)))
    return found if config.tie_word_embeddings else [*found, TensorSpec("lm_head.weight", found[0].shape)]


def count(config: PreTrainedConfig, type: GgufType, *, has_importance: bool = False) -> dict[str, int]:
    chosen = choose_types(tensors(config), GgufLayout.of(config), type, has_importance=has_importance)
    return dict(Counter(found.type.name for found in chosen.values()) - Counter(["F32"]))


@pytest.mark.parametrize(
    ("type", "expected"),
    [
        (GgufType.Q4_K_M, {"Q4_K": 193, "Q6_K": 33}),
        (GgufType.Q5_K_M, {"Q5_K": 193, "Q6_K": 33}),
        (GgufType.Q3_K_M, {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}),
        (GgufType.Q6_K, {"Q6_K": 226}),
        (GgufType.IQ4_XS, {"IQ4_XS": 221, "Q5_K": 4, "Q6_K": 1}),
    ],
)
def test_a_7b_model_has_the_types_that_llama_cpp_prints(type: GgufType, expected: dict[str, int]) -> None:
    assert count(LLAMA_2_7B, type) == expected


def test_shared_heads_and_an_importance_matrix_change_iq4_xs() -> None:
    assert count(LLAMA_3_8B, GgufType.IQ4_XS) == {"IQ4_XS": 189, "Q5_K": 36, "Q6_K": 1}
    assert count(LLAMA_3_8B, GgufType.IQ4_XS, has_importance=True) == {"IQ4_XS": 193, "Q5_K": 32, "Q6_K": 1}


def test_a_70b_models_values_have_more_bits() -> None:
    # Its 80 value matrices have 40 times Q6_K, and Q5_K in place of Q4_K.
    assert count(LLAMA_70B, GgufType.Q4_K_M)["Q5_K"] == 40


def test_rows_that_256_does_not_divide_have_the_types_that_llama_cpp_takes_then() -> None:
    chosen = choose_types(tensors(QWEN_0_5B), GgufLayout.of(QWEN_0_5B), GgufType.Q4_K_M)

    # As in Qwen's own q4_k_m of this model: only down_proj has rows of 4864 = 19 * 256.
    counts = Counter(found.type.name for found in chosen.values()) - Counter(["F32"])
    assert counts == {"Q5_0": 132, "Q8_0": 13, "Q4_K": 12, "Q6_K": 12}
    assert describe_fallbacks(chosen) == (
        "144 of 169 weights have rows that are no multiple of 256, which K-quants need, and have the type "
        "that llama.cpp takes then: 132 in q5_0 and not q4_k, 12 in q8_0 and not q6_k."
    )


def test_rows_that_32_does_not_divide_have_16_bits() -> None:
    config = LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4)

    # Its output layer is Q8_0 wherever K-quants do not fit, and 48 is no multiple of 32 either.
    assert set(count(config, GgufType.Q4_K_M)) == {"F16"}


def test_the_size_is_known_before_the_file_is_written() -> None:
    layout = GgufLayout.of(LLAMA_2_7B)

    # llama-2-7b.Q4_K_M.gguf has 4.08 GB.
    assert count_bytes(tensors(LLAMA_2_7B), layout, GgufType.Q4_K_M) / 1e9 == pytest.approx(4.08, abs=0.01)
