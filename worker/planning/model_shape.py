"""A base model's shape, from its config: the model is built without weights, with PEFT's adapter on it.

All counts are therefore the libraries' own, whatever the architecture; only the widths of attention and MLP
are read by name.
"""

import warnings

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, PreTrainedModel

from app.core.specs.job import LoraSpec
from worker.models import lora
from worker.models.base_model import linears_to_quantize
from worker.models.layer_sizes import find_decoder_layers, largest
from worker.planning.memory_estimate import ModelShape

# Names of linear layers that share their input with no other linear layer.
_OUTPUT_PROJECTIONS = {"o_proj", "out_proj", "dense", "c_proj", "down_proj", "fc2", "dense_4h_to_h", "w2"}


def count_embedding_rows(model: PreTrainedModel) -> int:
    """The number of tokens that the model has an embedding for."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]


def shape_of(model: PreTrainedModel, spec: LoraSpec) -> ModelShape:
    """The shape of a model on the meta device, which gets the adapter of the spec. Raises BadTarget."""
    return attach_and_measure(model, spec)[1]


def attach_and_measure(model: PreTrainedModel, spec: LoraSpec) -> tuple[PeftModel, ModelShape]:
    """(a model on the meta device with the adapter of the spec, its shape). Raises BadTarget."""
    config = model.config.get_text_config()
    quantized = linears_to_quantize(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    linear_sizes = [linear.get_parameter("weight").numel() for linear in quantized.values()]
    layer_weights = sum(p.numel() for layer in find_decoder_layers(model) for p in layer.parameters())
    norm_width = _norm_width(model, config)
    vocabulary = count_embedding_rows(model)
    layers = config.num_hidden_layers
    model.requires_grad_(False)
    with_adapter = _attach(model, spec)
    adapted = _adapted(with_adapter)
    # A model without attention has no heads; its saved activations are then estimated from its width.
    heads = largest(config, "num_attention_heads") or 1
    head_width = largest(config, "head_dim") or config.hidden_size // heads
    shape = ModelShape(
        layers=layers,
        hidden=config.hidden_size,
        vocabulary=vocabulary,
        heads=heads,
        query_width=heads * head_width,
        key_width=(largest(config, "num_key_value_heads") or heads) * head_width,
        mlp_width=_mlp_width(config),
        is_gated=any("gate" in name.rpartition(".")[2] for name in quantized),
        norm_width=norm_width // layers,
        quantized_weights=sum(linear_sizes),
        other_weights=total - sum(linear_sizes),
        largest_linear=max(linear_sizes, default=0),
        trained_sizes=tuple(p.numel() for p in model.parameters() if p.requires_grad),
        adapted_inputs=sum(inputs for _place, inputs, _rank in adapted),
        shared_inputs=sum({place: inputs for place, inputs, _rank in adapted if place}.values()),
        ranks=sum(rank for _place, _inputs, rank in adapted),
        layer_weights=layer_weights,
    )
    return with_adapter, shape


def _attach(model: PreTrainedModel, spec: LoraSpec) -> PeftModel:
    with torch.device("meta"), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by the old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return lora.attach(model, spec)


def _adapted(model: PeftModel) -> list[tuple[str, int, int]]:
    """(name of its input, width of its input, rank) of each adapted linear layer.

    The input of attention's output projection is saved by attention itself: its name is empty.
    """
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer) or not hasattr(module, "lora_A"):
            continue
        parent, _dot, own = name.rpartition(".")
        is_output = own in _OUTPUT_PROJECTIONS
        reads_attention = is_output and "attn" in parent
        place = "" if reads_attention else f"{parent}:{is_output}"
        for adapter in module.lora_A:
            found.append((place, module.in_features, module.r[adapter]))
    return found


def _norm_width(model: PreTrainedModel, config: PreTrainedConfig) -> int:
    """Sum of the widths of all norms inside the layers; one of a head's width is applied to every head."""
    width = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if "Norm" not in type(module).__name__ or weight is None or ".layers." not in f".{name}.":
            continue
        is_key = name.endswith("k_norm")
        is_query = name.endswith("q_norm")
        heads = 1
        if (is_key or is_query) and weight.numel() == largest(config, "head_dim"):
            heads = largest(config, "num_key_value_heads" if is_key else "num_attention_heads") or 1
        width += weight.numel() * heads
    return width


def _mlp_width(config: PreTrainedConfig) -> int:
    """The width between the MLP's linear layers, the largest of all layers.

    Of a mixture of experts, the sum over all experts of one token.
    """
    width = largest(config, "intermediate_size") or largest(config, "n_inner") or 4 * config.hidden_size
    experts = largest(config, "num_experts_per_tok")
    return experts * (largest(config, "moe_intermediate_size") or width) if experts else width
