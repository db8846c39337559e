"""GGUF by model family: keys, tensor names, and the layout of weights.

The conversions follow llama.cpp's convert_hf_to_gguf.py (https://github.com/ggml-org/llama.cpp), the names
the `gguf` package's own map. Models that llama.cpp would run differently are refused.

- llama, mistral: architecture `llama`, which rotates adjacent pairs of a head, where Hugging Face's weights
  are for its two halves: the rows of q and k are permuted. Llama 3's RoPE scaling is a tensor of factors.
- qwen2, qwen3: weights unchanged.
- gemma2, gemma3: their norms multiply by 1 + weight; the file holds the sum.
- phi3: q, k, v and gate, up are one tensor each, in Hugging Face's files and in GGUF alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import torch
from gguf import MODEL_ARCH, GGUFWriter, TensorNameMap
from transformers import LlamaConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from app.core.errors.exports import GgufFamilyUnknown

_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufFamily:
    """How a `model_type` of transformers maps to a GGUF architecture."""

    arch: MODEL_ARCH
    permutes_heads: bool = False
    adds_one_to_norms: bool = False
    may_untie: bool = True
    write_more: Callable[[GGUFWriter, PreTrainedConfig], None] = lambda writer, config: None
    check: Callable[[PreTrainedConfig], None] = lambda config: None


def _write_gemma(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)


def _write_phi3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    # For llama.cpp, 0 means no sliding window.
    writer.add_sliding_window(config.sliding_window or 0)


def _check_gemma(config: PreTrainedConfig) -> None:
    """Refuse an attention scale other than the one that llama.cpp derives from the number of layers."""
    is_27b = config.num_hidden_layers in (46, 62)
    expected = config.hidden_size / config.num_attention_heads if is_27b else config.head_dim
    if config.query_pre_attn_scalar != expected:
        raise _refuse(
            config, f"its query_pre_attn_scalar is {config.query_pre_attn_scalar}, not {expected:g}"
        )


_FAMILIES = {
    "llama": GgufFamily(MODEL_ARCH.LLAMA, permutes_heads=True),
    "mistral": GgufFamily(MODEL_ARCH.LLAMA, permutes_heads=True),
    "qwen2": GgufFamily(MODEL_ARCH.QWEN2),
    "qwen3": GgufFamily(MODEL_ARCH.QWEN3),
    "gemma2": GgufFamily(
        MODEL_ARCH.GEMMA2,
        adds_one_to_norms=True,
        may_untie=False,
        write_more=_write_gemma,
        check=_check_gemma,
    ),
    "gemma3_text": GgufFamily(
        MODEL_ARCH.GEMMA3,
        adds_one_to_norms=True,
        may_untie=False,
        write_more=_write_gemma,
        check=_check_gemma,
    ),
    "phi3": GgufFamily(MODEL_ARCH.PHI3, write_more=_write_phi3),
}


def find_family(config: PreTrainedConfig) -> GgufFamily:
    """The GGUF family of a model. Raises GgufFamilyUnknown."""
    family = _FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(_FAMILIES))
        raise GgufFamilyUnknown(
            f"Models of the type {config.model_type!r} can't be written as GGUF here.",
            hint=f'Known: {known}. The format "merged" takes any model, and llama.cpp converts more of them.',
        )
    family.check(config)
    for rope in _rope_settings(config):
        if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
            raise _refuse(config, f"its RoPE is scaled by {rope['rope_type']!r}")
    return family


@dataclass(frozen=True)
class GgufLayout:
    """The keys, tensor names and weight layout of one model in GGUF."""

    family: GgufFamily
    config: PreTrainedConfig
    names: TensorNameMap

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "GgufLayout":
        """The layout for a model's config. Raises GgufFamilyUnknown."""
        family = find_family(config)
        return cls(family, config, gguf.get_tensor_name_map(family.arch, config.num_hidden_layers))

    def check_untied(self) -> None:
        """Raise GgufFamilyUnknown where this architecture requires tied embeddings."""
        if not self.family.may_untie:
            raise _refuse(self.config, "its output layer is not its embedding, as this architecture demands")

    @property
    def arch_name(self) -> str:
        """The architecture's name in the file."""
        return gguf.MODEL_ARCH_NAMES[self.family.arch]

    @property
    def run_as(self) -> PreTrainedConfig:
        """The config of the model as llama.cpp runs it: a Mistral is a Llama without a sliding window."""
        if self.config.model_type != "mistral":
            return self.config
        settings = self.config.to_dict()
        left_out = ("model_type", "architectures", "sliding_window", "transformers_version")
        return LlamaConfig(**{key: value for key, value in settings.items() if key not in left_out})

    def name(self, parameter: str) -> str:
        """The name of a parameter in the file. Raises GgufFamilyUnknown."""
        found: str | None = self.names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise _refuse(self.config, f"GGUF has no name for its weight {parameter}")
        return found

    def arrange(self, parameter: str, weight: torch.Tensor) -> torch.Tensor:
        """A parameter's values as the file holds them."""
        if self.family.permutes_heads:
            heads = self._heads(parameter)
            weight = permute_heads(weight, heads) if heads else weight
        if self.family.adds_one_to_norms and parameter.endswith("norm.weight"):
            weight = weight.float() + 1
        return weight

    def arrange_lora_b(self, module: str, B_OR: torch.Tensor) -> torch.Tensor:
        """LoRA's B of a layer, its rows permuted as those of the layer's weight."""
        heads = self._heads(module + ".weight") if self.family.permutes_heads else 0
        return permute_heads(B_OR, heads) if heads else B_OR

    def write_keys(self, writer: GGUFWriter) -> None:
        """Write the model's hyperparameters."""
        config = self.config
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_key_length(self._head_size)
        writer.add_value_length(self._head_size)
        rope = _rope_settings(config)[0]
        partial = rope.get("partial_rotary_factor") or 1.0
        writer.add_rope_dimension_count(int(self._head_size * partial))
        writer.add_rope_freq_base(float(rope["rope_theta"]))
        if rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        self.family.write_more(writer, config)

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors that the file needs and the checkpoint does not hold, by name."""
        rope = _rope_settings(self.config)[0]
        if rope.get("rope_type") != "llama3":
            return {}
        scaled, _attention = ROPE_INIT_FUNCTIONS["llama3"](self.config, torch.device("cpu"))
        steps = torch.arange(0, self._head_size, 2, dtype=torch.float32) / self._head_size
        return {_ROPE_FACTORS: 1.0 / (float(rope["rope_theta"]) ** steps) / scaled}

    @property
    def _head_size(self) -> int:
        size = getattr(self.config, "head_dim", None)
        return int(size or self.config.hidden_size // self.config.num_attention_heads)

    def _heads(self, parameter: str) -> int:
        """The number of heads in a weight whose rows are permuted; 0 for other weights."""
        if ".q_proj." in parameter:
            return int(self.config.num_attention_heads)
        return int(self.config.num_key_value_heads) if ".k_proj." in parameter else 0


def permute_heads(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from (first half, second half) to interleaved pairs."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _rope_settings(config: PreTrainedConfig) -> list[dict[str, float | str]]:
    """The RoPE settings by kind of layer, those of full attention first."""
    found = config.rope_parameters
    if "full_attention" in found:
        return [found["full_attention"], found["sliding_attention"]]
    return [found]


def _refuse(config: PreTrainedConfig, reason: str) -> GgufFamilyUnknown:
    return GgufFamilyUnknown(
        f"This {config.model_type} model can't be written as GGUF: {reason}.",
        hint='The format "merged" takes any model.',
    )
