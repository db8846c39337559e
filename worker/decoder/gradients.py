"""The gradients of a decoder layer, written down in the reverse order of `layer.forward`.

T: tokens. H: the hidden size. I: the width of the MLP. H, K (in THD, TKD): heads of queries and of keys. D:
the width of a head.
"""

import torch

from worker.decoder.layer import DecoderStep, Layer, LayerState, Normed
from worker.decoder.lora_linears import LoraLinears
from worker.decoder.operations import Norm, Operations


def projections_of(layer: Layer[LoraLinears]) -> tuple[LoraLinears, ...]:
    """In the order in which `backward` returns the gradients of their parameters."""
    return layer.qkv, layer.o, layer.gate_up, layer.down


def padding_of(layer: Layer[LoraLinears]) -> int:
    """How many elements should be free behind each row of the gradient of the layer's output."""
    return layer.down.output_grad_padding() if layer.mlp_output_norm is None else 0


def backward(
    layer: Layer[LoraLinears],
    state: LayerState,
    grad_TH: torch.Tensor,
    step: DecoderStep,
    *,
    padding: int,
    next_padding: int,
    needs_input: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Return the gradient of the stream before the layer, and those of the projections' parameters.

    Parts of `state` are deleted as soon as they are not needed: gradients take their memory. `padding`: so
    many elements behind each row of `grad_TH` are free; `next_padding`: so many should be behind those of
    what is returned. `needs_input`: False for a first layer whose input has no gradient.
    """
    ops = step.operations
    grad_y_TH = _through_norm(ops, grad_TH, layer.mlp_output_norm, state.mlp_output_norm)
    grad_active_TI, of_down = layer.down.backward(state.down, [grad_y_TH], padding=padding)
    assert grad_active_TI is not None
    gate_TI, up_TI = state.gate_TI, state.up_TI
    del state.down, state.gate_TI, state.up_TI
    ops.activation_gradient(grad_active_TI, gate_TI, up_TI, layer.activation)
    del grad_active_TI
    grads = [_side_by_side(gate_TI, up_TI)] if layer.gate_up.count == 1 else [gate_TI, up_TI]
    grad_normed_TH, of_gate_up = layer.gate_up.backward(state.gate_up, grads)
    assert grad_normed_TH is not None
    del grads, gate_TI, up_TI, state.gate_up
    o_padding = layer.o.output_grad_padding() if layer.attended_norm is None else 0
    grad_TH = ops.norm_gradient(
        grad_normed_TH,
        grad_TH,
        state.mlp_norm.x_TH,
        layer.mlp_norm,
        state.mlp_norm.factor_T,
        padding=o_padding,
    )
    grad_y_TH = _through_norm(ops, grad_TH, layer.attended_norm, state.attended_norm)
    grad_attended, of_o = layer.o.backward(state.o, [grad_y_TH], padding=o_padding)
    assert grad_attended is not None
    del state.mlp_norm, state.o, grad_normed_TH
    heads_THD = (state.q_THD, state.k_TKD, state.v_TKD)
    grad_q_THD, grad_k_TKD, grad_v_TKD = torch.autograd.grad(
        state.attended_THD, heads_THD, grad_attended.view(state.attended_THD.shape)
    )
    del state.attended_THD, state.q_THD, state.k_TKD, state.v_TKD, heads_THD, grad_attended
    cosine_TD, sine_TD = step.angles[layer.heads.kind]
    grad_q_THD, grad_k_TKD = ops.rotate(grad_q_THD, grad_k_TKD, cosine_TD, -sine_TD)
    grad_q_THD = _through_head_norm(ops, grad_q_THD, layer.query_norm, state.query_norm)
    grad_k_TKD = _through_head_norm(ops, grad_k_TKD, layer.key_norm, state.key_norm)
    grads = [one.flatten(1) for one in (grad_q_THD, grad_k_TKD, grad_v_TKD)]
    if layer.qkv.count == 1:
        grads = [torch.cat(grads, dim=1)]
    grad_normed_TH, of_qkv = layer.qkv.backward(state.qkv, grads, needs_x=needs_input)
    parameters = [*of_qkv, *of_o, *of_gate_up, *of_down]
    if grad_normed_TH is None:
        return None, parameters
    before = state.input_norm
    grad_TH = ops.norm_gradient(
        grad_normed_TH, grad_TH, before.x_TH, layer.input_norm, before.factor_T, padding=next_padding
    )
    return grad_TH, parameters


def _through_norm(
    ops: Operations, grad_TH: torch.Tensor, norm: Norm | None, normed: Normed | None
) -> torch.Tensor:
    if norm is None or normed is None:
        return grad_TH
    return ops.norm_gradient(grad_TH, None, normed.x_TH, norm, normed.factor_T)


def _through_head_norm(
    ops: Operations, grad_THD: torch.Tensor, norm: Norm | None, normed: Normed | None
) -> torch.Tensor:
    if norm is None or normed is None:
        return grad_THD
    grad_ND = grad_THD.reshape(normed.x_TH.shape)
    return ops.norm_gradient(grad_ND, None, normed.x_TH, norm, normed.factor_T).view(grad_THD.shape)


def _side_by_side(gate_TI: torch.Tensor, up_TI: torch.Tensor) -> torch.Tensor:
    """The matrix [T, 2 I] that the two are halves of."""
    tokens, width = gate_TI.shape
    return gate_TI.as_strided((tokens, 2 * width), (2 * width, 1))
