"""LoRA linear layers that read one input, as one autograd function. Knows no module and no model.

PEFT adds an adapter with six kernels of its own and keeps what lies between them. Here every sum and every
scaling is the epilogue of a matrix product (`addmm` with alpha and beta), the products with A are one for all
layers, and autograd keeps the input and the products with A, which are as narrow as the rank. That a LoRA
layer's backward pass needs no more is shown in Unsloth (unsloth.ai/blog, "manual autograd").

T: tokens. I: inputs. O: outputs of a layer. R: the rank; S: the ranks of all layers together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional


class Weight(Protocol):
    """A frozen weight, however it is held."""

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""


@dataclass(frozen=True)
class Layer:
    """One LoRA layer but for its adapter."""

    weight: Weight
    bias_O: torch.Tensor | None
    scaling: float
    dropout: float


@dataclass(frozen=True)
class Adapters:
    """The adapters in the type of the products. They are read again in the backward pass: never changed
    between the two. `a_SI` holds the A of all layers, one below the other."""

    a_SI: torch.Tensor
    b_OR: tuple[torch.Tensor, ...]

    @property
    def ranks(self) -> list[int]:
        """Of every layer."""
        return [b_OR.shape[1] for b_OR in self.b_OR]


def lora_linears(
    x_TI: torch.Tensor,
    layers: Sequence[Layer],
    adapters: Adapters,
    parameters: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """What every layer makes of the input, [T, O] each.

    `parameters` are A and B of every layer in turn, which get the gradients. Layers with dropout draw a mask
    each, in their order, from the same random numbers that PEFT's layers draw.
    """
    outputs: tuple[torch.Tensor, ...] = _LoraLinears.apply(x_TI, tuple(layers), adapters, *parameters)
    return outputs


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, layers: tuple[Layer, ...], adapters: Adapters, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        with torch.autocast(x_TI.device.type, enabled=False):
            masks = [_draw_mask(x_TI, layer.dropout) for layer in layers]
            inner_TS = _down(x_TI, layers, masks, adapters)
            outputs = []
            for layer, b_OR, inner_TR in zip(
                layers, adapters.b_OR, inner_TS.split(adapters.ranks, dim=1), strict=True
            ):
                y_TO = functional.linear(x_TI, layer.weight.read(x_TI.dtype), layer.bias_O)
                outputs.append(y_TO.addmm_(inner_TR, b_OR.t(), alpha=layer.scaling))
        ctx.save_for_backward(x_TI, inner_TS, *masks)
        ctx.layers, ctx.adapters = layers, adapters
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads_TO: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_TI, inner_TS, *masks = ctx.saved_tensors
        layers, adapters, ranks = ctx.layers, ctx.adapters, ctx.adapters.ranks
        gradients: list[torch.Tensor | None] = []
        with torch.autocast(x_TI.device.type, enabled=False):
            # The gradient of every product with A, scaled; a layer whose output was not used has none.
            grad_inner_TS = torch.zeros_like(inner_TS) if None in grads_TO else torch.empty_like(inner_TS)
            inners, grad_inners = inner_TS.split(ranks, dim=1), grad_inner_TS.split(ranks, dim=1)
            grad_bs: list[torch.Tensor | None] = []
            for place, (layer, grad_TO) in enumerate(zip(layers, grads_TO, strict=True)):
                if grad_TO is None:
                    grad_bs.append(None)
                    continue
                _scaled_product(grad_TO, adapters.b_OR[place], layer.scaling, out=grad_inners[place])
                grad_bs.append(_scaled_product(grad_TO.t(), inners[place], layer.scaling))
            grad_as = _grad_of_a(x_TI, grad_inner_TS, layers, masks, ranks)
            grad_x_TI = None
            if ctx.needs_input_grad[0]:
                grad_x_TI = _grad_of_input(x_TI, grads_TO, grad_inner_TS, layers, masks, adapters)
        for grad_a_RI, grad_b_OR in zip(grad_as, grad_bs, strict=True):
            gradients += [grad_a_RI, grad_b_OR] if grad_b_OR is not None else [None, None]
        return grad_x_TI, None, None, *gradients


def _draw_mask(x_TI: torch.Tensor, dropout: float) -> torch.Tensor | None:
    """Where dropout keeps the input; None: everywhere."""
    return torch.native_dropout(x_TI, dropout, True)[1] if dropout else None


def _keep(x_TI: torch.Tensor, mask_TI: torch.Tensor, dropout: float) -> torch.Tensor:
    return (x_TI * mask_TI).mul_(1 / (1 - dropout))


def _down(
    x_TI: torch.Tensor,
    layers: Sequence[Layer],
    masks: Sequence[torch.Tensor | None],
    adapters: Adapters,
) -> torch.Tensor:
    """The products with A, side by side, [T, S]."""
    if all(mask is None for mask in masks):
        return torch.mm(x_TI, adapters.a_SI.t())
    inner_TS = x_TI.new_empty(len(x_TI), len(adapters.a_SI))
    parts = zip(
        layers,
        masks,
        adapters.a_SI.split(adapters.ranks),
        inner_TS.split(adapters.ranks, dim=1),
        strict=True,
    )
    for layer, mask_TI, a_RI, inner_TR in parts:
        kept_TI = x_TI if mask_TI is None else _keep(x_TI, mask_TI, layer.dropout)
        torch.mm(kept_TI, a_RI.t(), out=inner_TR)
    return inner_TS


def _grad_of_a(
    x_TI: torch.Tensor,
    grad_inner_TS: torch.Tensor,
    layers: Sequence[Layer],
    masks: Sequence[torch.Tensor | None],
    ranks: list[int],
) -> Sequence[torch.Tensor]:
    """[R, I] for every layer."""
    if all(mask is None for mask in masks):
        return torch.mm(grad_inner_TS.t(), x_TI).split(ranks)
    grads = []
    for layer, mask_TI, grad_inner_TR in zip(layers, masks, grad_inner_TS.split(ranks, dim=1), strict=True):
        kept_TI = x_TI if mask_TI is None else _keep(x_TI, mask_TI, layer.dropout)
        grads.append(torch.mm(grad_inner_TR.t(), kept_TI))
    return grads


def _grad_of_input(
    x_TI: torch.Tensor,
    grads_TO: Sequence[torch.Tensor | None],
    grad_inner_TS: torch.Tensor,
    layers: Sequence[Layer],
    masks: Sequence[torch.Tensor | None],
    adapters: Adapters,
) -> torch.Tensor:
    """[T, I], through the weights and through the adapters of all layers."""
    grad_x_TI: torch.Tensor | None = None
    for layer, grad_TO in zip(layers, grads_TO, strict=True):
        if grad_TO is None:
            continue
        weight_OI = layer.weight.read(x_TI.dtype)
        grad_x_TI = (
            torch.mm(grad_TO, weight_OI) if grad_x_TI is None else grad_x_TI.addmm_(grad_TO, weight_OI)
        )
    assert grad_x_TI is not None
    if all(mask is None for mask in masks):
        return grad_x_TI.addmm_(grad_inner_TS, adapters.a_SI)
    parts = zip(
        layers,
        masks,
        adapters.a_SI.split(adapters.ranks),
        grad_inner_TS.split(adapters.ranks, dim=1),
        strict=True,
    )
    for layer, mask_TI, a_RI, grad_inner_TR in parts:
        through_a_TI = torch.mm(grad_inner_TR, a_RI)
        grad_x_TI += through_a_TI if mask_TI is None else _keep(through_a_TI, mask_TI, layer.dropout)
    return grad_x_TI


def _scaled_product(
    left: torch.Tensor, right: torch.Tensor, scale: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """One product whose epilogue scales it; with beta 0 the summand is not read."""
    unread = left.new_empty(()) if out is None else out
    return torch.addmm(unread, left, right, beta=0, alpha=scale, out=out)
