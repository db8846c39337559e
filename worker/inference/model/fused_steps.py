"""Decode steps of a decoder like Llama's in as few kernels as can be: one token of each row.

What adapters add to a product, and the residual stream, are added by the kernel that reads the product next.
For a single token without adapters, norms and activation are part of the products: six kernels a layer. The
numbers are those of worker/decoder but for roundings that are left out.

Shape letters: N tokens, H hidden size, O outputs of a product, I width of the MLP, D dimension of a head.
"""

from dataclasses import dataclass

import torch

from worker.decoder.layer import Layer
from worker.decoder.operations import Norm
from worker.decoder.stack import DecoderStack
from worker.inference.model import attention
from worker.inference.model.linears import MergedLinears
from worker.kernels import lora_tiles, norm, swiglu
from worker.kernels.pending_lora import PendingLora
from worker.kernels.serving import batched_lora, decode_heads, matrix_vector, paged_attention
from worker.kernels.serving.decode_heads import CachePlaces, HeadNorms
from worker.kernels.serving.matrix_vector import InputNorm

Angles = tuple[torch.Tensor, torch.Tensor]
MergedLayer = Layer[MergedLinears]


@dataclass(frozen=True)
class _Pending:
    """A product that is not yet added to the residual stream, with what adapters add to it.

    `norm`: it is normed before.
    """

    y_NH: torch.Tensor
    update: PendingLora | None
    norm: Norm | None


def forward(
    stack: DecoderStack[MergedLinears],
    embedded_NH: torch.Tensor,
    step: attention.Step,
    angles: dict[str | None, Angles],
) -> torch.Tensor:
    """Return the normed hidden states [N, H] of embedded tokens."""
    if len(embedded_NH) == 1 and all(_is_plain(layer) for layer in stack.layers):
        stream_NH = embedded_NH
        for layer in stack.layers:
            stream_NH = _compute_one_token(layer, stream_NH, step, angles[layer.heads.kind])
        return _add_and_norm(stream_NH, None, stack.norm)[1]
    stream_NH, pending = embedded_NH, None
    for layer in stack.layers:
        stream_NH, pending = _compute(layer, stream_NH, pending, step, angles[layer.heads.kind])
    return _add_and_norm(stream_NH, pending, stack.norm)[1]


def _is_plain(layer: MergedLayer) -> bool:
    """Whether all products are dense and without adapters, with the norms and activation that Llama has."""
    plain = [one.plain_weights() for one in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    has_output_norms = layer.attended_norm is not None or layer.mlp_output_norm is not None
    is_like_llama = not has_output_norms and not layer.input_norm.adds_one and layer.activation == "silu"
    return is_like_llama and None not in plain and plain[2] is not None and plain[2][1] is None


def _compute_one_token(
    layer: MergedLayer, stream_1H: torch.Tensor, step: attention.Step, angles: Angles
) -> torch.Tensor:
    """The residual stream behind a layer of which `_is_plain` holds."""
    qkv, gate_up = layer.qkv.plain_weights(), layer.gate_up.plain_weights()
    assert qkv is not None
    assert gate_up is not None
    input_norm = InputNorm(layer.input_norm.weight, layer.input_norm.epsilon)
    mlp_norm = InputNorm(layer.mlp_norm.weight, layer.mlp_norm.epsilon)
    qkv_1O = matrix_vector.product(stream_1H, *qkv, norm=input_norm)
    attended_1O = _attend(layer, qkv_1O, None, step, angles)
    stream_1H = layer.o.product(attended_1O, stream_1H)
    active_1I = matrix_vector.product(stream_1H, gate_up[0], norm=mlp_norm, is_gated=True)
    return layer.down.product(active_1I, stream_1H)


def _compute(
    layer: MergedLayer,
    stream_NH: torch.Tensor,
    pending: _Pending | None,
    step: attention.Step,
    angles: Angles,
) -> tuple[torch.Tensor, _Pending]:
    """The residual stream in the middle of a layer, and what is to be added to it behind the layer."""
    stream_NH, normed_NH = _add_and_norm(stream_NH, pending, layer.input_norm)
    attended_NO = _attend(layer, *_begin_heads(layer.qkv, normed_NH), step, angles)
    pending = _Pending(*layer.o.begin(attended_NO), layer.attended_norm)
    stream_NH, normed_NH = _add_and_norm(stream_NH, pending, layer.mlp_norm)
    gate_up_NO, update = layer.gate_up.begin(normed_NH)
    is_gelu = layer.activation == "gelu_tanh"
    if update is None:
        active_NI = swiglu.activate(*gate_up_NO.chunk(2, dim=1), is_gelu=is_gelu)
    elif len(normed_NH) <= lora_tiles.MAX_TOKENS:
        active_NI = swiglu.update_and_activate(gate_up_NO, update, is_gelu=is_gelu)
    else:
        active_NI = batched_lora.expand_and_activate(gate_up_NO, update, is_gelu=is_gelu)
    return stream_NH, _Pending(*layer.down.begin(active_NI), layer.mlp_output_norm)


def _begin_heads(projection: MergedLinears, x_NI: torch.Tensor) -> tuple[torch.Tensor, PendingLora | None]:
    """The outputs of q, k and v, and what is left to be added to those of few tokens."""
    y_NO, update = projection.begin(x_NI)
    if update is None or len(x_NI) <= lora_tiles.MAX_TOKENS:
        return y_NO, update
    widths = tuple(projection.widths)
    return batched_lora.expand(y_NO, update.inner_NC, update.slots_N, update.B_SRO, widths), None


def _attend(
    layer: MergedLayer,
    qkv_NO: torch.Tensor,
    update: PendingLora | None,
    step: attention.Step,
    angles: Angles,
) -> torch.Tensor:
    """Store the keys and values of the tokens, and return what their queries attend to, [N, O of v]."""
    heads = layer.heads
    step.windows[layer.index] = heads.window
    _query_NO, key_NO, value_NO = qkv_NO.split(heads.widths, dim=1)
    key_GND, value_GND = (one.unflatten(1, (heads.keys, -1)).transpose(0, 1) for one in (key_NO, value_NO))
    cache = step.cache.layer(layer.index, key_GND, value_GND)
    places = CachePlaces(
        cache.keys_PSGD, cache.values_PSGD, step.block_tables_RP, step.rows_N, step.positions_N
    )
    query_HND = decode_heads.prepare(qkv_NO, update, angles, places, _head_norms(layer))
    settings = paged_attention.AttentionSettings(heads.scale, heads.window or 0)
    attended_NHD = paged_attention.decode(
        query_HND, cache.keys_PSGD, cache.values_PSGD, step.block_tables_RP, step.positions_N, settings
    )
    return attended_NHD.flatten(1)


def _head_norms(layer: MergedLayer) -> HeadNorms | None:
    query, key = layer.query_norm, layer.key_norm
    if query is None or key is None:
        return None
    return HeadNorms(query.weight, key.weight, query.epsilon, query.adds_one)


def _add_and_norm(
    stream_NH: torch.Tensor, pending: _Pending | None, one: Norm
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream with what was pending, and the norm of that."""
    if pending is None:
        return stream_NH, norm.rms_norm_and_scale(stream_NH, one.weight, one.epsilon, adds_one=one.adds_one)[
            0
        ]
    return norm.add_and_norm(
        stream_NH,
        pending.y_NH,
        pending.update,
        one.weight,
        one.epsilon,
        output_weight_H=pending.norm.weight if pending.norm else None,
        adds_one=one.adds_one,
    )
