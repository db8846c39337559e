"""Reads transformers' decoders as `DecoderStack`s, for families whose layers are like Llama's.

No module is changed. T: tokens. H: the hidden size. D: the width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from worker.decoder.layer import Heads, Layer, ProjectionT
from worker.decoder.operations import Activation, Norm
from worker.decoder.stack import DecoderStack

# By `model_type`. Others may look the same and scale or cap what these do not.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text"})
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class Unsupported(Exception):
    """A part of the model is not as in any family that worker/decoder computes; the message names it."""


def read_stack(
    decoder: Any, read_linears: Callable[[list[nn.Module]], ProjectionT]
) -> DecoderStack[ProjectionT]:
    """Read the modules of a decoder of `FAMILIES`. Raises Unsupported.

    `read_linears`: makes one projection of linear layers that read the same input.
    """
    layers = [
        _read_layer(index, layer, decoder.config, read_linears) for index, layer in enumerate(decoder.layers)
    ]
    return DecoderStack(layers, _read_norm(decoder.norm))


def read_heads(decoder: Any) -> set[Heads]:
    """The kinds of attention that the layers of a decoder of `FAMILIES` have. Raises Unsupported."""
    return {_read_heads(layer.self_attn, decoder.config) for layer in decoder.layers}


@torch.no_grad()
def read_angles(
    decoder: Any, stack: DecoderStack[ProjectionT], embedded_1TH: torch.Tensor, positions_1T: torch.Tensor
) -> dict[str | None, tuple[torch.Tensor, torch.Tensor]]:
    """The cosines and sines [T, D] that rotate the heads of each kind of attention."""
    found = {}
    for kind in {layer.heads.kind for layer in stack.layers}:
        given = () if kind is None else (kind,)
        cosine_1TD, sine_1TD = decoder.rotary_emb(embedded_1TH, positions_1T, *given)
        found[kind] = (cosine_1TD[0].contiguous(), sine_1TD[0].contiguous())
    return found


def _read_layer(
    index: int, layer: Any, config: Any, read_linears: Callable[[list[nn.Module]], ProjectionT]
) -> Layer[ProjectionT]:
    attention, mlp = layer.self_attn, layer.mlp
    has_two_norms = hasattr(layer, "pre_feedforward_layernorm")  # around each half of the layer, as in Gemma
    after = layer.post_attention_layernorm
    return Layer(
        index=index,
        input_norm=_read_norm(layer.input_layernorm),
        qkv=read_linears(_children(attention, ("q_proj", "k_proj", "v_proj"), "qkv_proj")),
        heads=_read_heads(attention, config),
        o=read_linears([attention.o_proj]),
        mlp_norm=_read_norm(layer.pre_feedforward_layernorm if has_two_norms else after),
        gate_up=read_linears(_children(mlp, ("gate_proj", "up_proj"), "gate_up_proj")),
        activation=_read_activation(config),
        down=read_linears([mlp.down_proj]),
        query_norm=_read_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_read_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        attended_norm=_read_norm(after) if has_two_norms else None,
        mlp_output_norm=_read_norm(layer.post_feedforward_layernorm) if has_two_norms else None,
    )


def _children(parent: nn.Module, names: tuple[str, ...], fused: str) -> list[nn.Module]:
    return [parent.get_submodule(name) for name in ([fused] if hasattr(parent, fused) else names)]


def _read_norm(module: Any) -> Norm:
    if not type(module).__name__.endswith("RMSNorm"):
        raise Unsupported(f"the norm {type(module).__name__}")
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(module.weight.detach(), epsilon, adds_one=type(module).__name__.startswith("Gemma"))


def _read_heads(attention: Any, config: Any) -> Heads:
    if getattr(config, "partial_rotary_factor", None) not in (None, 1.0):
        raise Unsupported("heads that are rotated in part")
    # Mistral and Phi-3 have one window for all layers, Qwen and Gemma one for some; Llama has none.
    window = getattr(attention, "sliding_window", None)
    if config.model_type in ("mistral", "phi3"):
        window = config.sliding_window
    return Heads(
        queries=config.num_attention_heads,
        keys=config.num_key_value_heads,
        width=attention.head_dim,
        scale=attention.scaling,
        window=window,
        kind=attention.layer_type if config.model_type == "gemma3_text" else None,
    )


def _read_activation(config: Any) -> Activation:
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    if name not in _ACTIVATIONS:
        raise Unsupported(f"the activation {name}")
    return _ACTIVATIONS[name]
