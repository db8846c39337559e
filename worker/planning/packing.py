"""Whether packed rows read each other in a base model, found without its weights.

transformers separates rows by their position ids in most models, but not, for one, in models with a recurrent
state. Which it is depends on the model's code and the kinds of its layers, not on sizes or weights: a small
random model with the same configuration shows it.
B: sequences in a batch. L: tokens of a sequence.
"""

import copy
import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from app.core.errors import InvalidRequest

_ROW_LENGTH = 8
# Logits of two computations of the same tokens differ by rounding; a row that is read changes far more.
_LARGEST_ROUNDING = 1e-4
_WIDTH = 64
# Sizes of the small model, by names of configuration fields; a smaller size stays as it is.
_SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner"), _WIDTH),
    **dict.fromkeys(("ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), _WIDTH),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size", "ffn_hidden_size"), _WIDTH),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "block_ff_dim"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"), 16),
    **dict.fromkeys(("q_lora_rank", "linear_key_head_dim", "linear_value_head_dim", "laurel_rank"), 16),
    **dict.fromkeys(("hidden_size_per_layer_input", "mamba_d_head", "mamba_head_dim", "mamba_d_state"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "state_size", "ssm_state_size", "mamba_dt_rank"), 16),
    **dict.fromkeys(("time_step_rank", "rotary_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "num_heads"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    "mamba_d_ssm": 2 * _WIDTH,
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")

_log = logging.getLogger(__name__)


def refuse_leaking(config: PreTrainedConfig) -> bool:
    """Raise InvalidRequest where packed rows read each other; returns whether that could be found out.

    Where it could not, `refuse_leaking_model` finds it with the model's weights.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(shrink(config), dtype=torch.float32)
        leaks = find_leak(model)
    # A configuration that the sizes do not fit may fail anywhere in the library.
    except Exception as error:
        _log.info("No small %s can be made: %s", config.model_type, error)
        return False
    if leaks:
        _refuse()
    return True


def refuse_leaking_model(model: PreTrainedModel) -> None:
    """Raise InvalidRequest where packed rows read each other in a model that has its weights."""
    if find_leak(model):
        _refuse()


def find_leak(model: PreTrainedModel) -> bool:
    """Whether the logits of the second of two packed rows depend on the tokens of the first."""
    device = model.device
    positions_BL = torch.arange(_ROW_LENGTH, device=device).repeat(2)[None]
    first_BL = torch.arange(2 * _ROW_LENGTH, device=device)[None]
    second_BL = first_BL.clone()
    second_BL[:, :_ROW_LENGTH] += 1
    was_training = model.training
    model.eval()
    with torch.no_grad():
        one, other = (
            model(input_ids=ids_BL, position_ids=positions_BL, use_cache=False)
            .logits[:, _ROW_LENGTH:]
            .float()
            for ids_BL in (first_BL, second_BL)
        )
    model.train(was_training)
    rounding = max(_LARGEST_ROUNDING, torch.finfo(model.dtype).eps)
    # In this form, so that NaN counts as a leak.
    return not float((one - other).norm()) <= rounding * float(one.norm())


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration of the same kinds of layers, with a few layers of small widths."""
    text = copy.deepcopy(config.get_text_config())
    settings: dict[str, Any] = text.to_dict()
    settings.pop("quantization_config", None)
    layers = next((name for name in _LAYERS if isinstance(settings.get(name), int)), None)
    count = settings[layers] if layers else 0
    kept = _count_layers(settings, count)
    for name, value in settings.items():
        own = value[:kept] if isinstance(value, list) and len(value) == count else value
        settings[name] = _shrink_size(name, own)
    if isinstance(of_layers := settings.get("per_layer_config"), dict):
        settings["per_layer_config"] = {
            int(layer): {name: _shrink_size(name, value) for name, value in own.items()}
            for layer, own in of_layers.items()
            if int(layer) < kept
        }
    heads = getattr(text, "num_attention_heads", None)
    if settings.get("num_key_value_heads") == 2 and getattr(text, "num_key_value_heads", None) == heads:
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    if layers:
        settings[layers] = kept
    if settings.get("num_kv_shared_layers"):
        settings["num_kv_shared_layers"] = kept // 2
    if settings.get("max_window_layers"):
        settings["max_window_layers"] = min(settings["max_window_layers"], kept)
    settings |= dict.fromkeys(_TOKENS, 0)
    settings["rope_parameters"] = _without_factors(settings.get("rope_parameters"))
    settings["initializer_range"] = 0.1  # the usual 0.02 makes the attention of so narrow a model uniform
    return type(text)(**{name: value for name, value in settings.items() if value is not None})


def _count_layers(settings: dict[str, Any], count: int) -> int:
    """The number of layers at the model's beginning that have every kind, twice where layers share keys."""
    kinds = settings.get("layer_types") or settings.get("layers_block_type") or []
    needed = max((kinds.index(kind) + 1 for kind in set(kinds)), default=2)
    return min(count, 2 * needed if settings.get("num_kv_shared_layers") else max(2, needed))


def _shrink_size(name: str, value: Any) -> Any:
    if name not in _SMALL or isinstance(value, bool):
        return value
    if isinstance(value, list):
        return [_shrink_size(name, one) for one in value]
    return min(value, _SMALL[name]) if isinstance(value, int) else value


def _without_factors(rope: Any) -> Any:
    """Rotary embeddings without factors for each frequency, whose number depends on a head's width."""
    if not isinstance(rope, dict):
        return None
    if any(isinstance(value, dict) for value in rope.values()):
        return {name: _without_factors(value) for name, value in rope.items()}
    if "long_factor" not in rope:
        return rope
    plain = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return {**plain, "rope_type": "default"}


def _refuse() -> None:
    raise InvalidRequest(
        "Rows packed into one sequence would read each other in this base model.",
        param="training.packing",
        hint="Set training.packing to false.",
    )
