"""LoRA linear layers that read one input, as one autograd function. Knows no module and no model.

PEFT adds an adapter with six kernels of its own and keeps what lies between them. Here every sum and every
scaling is the epilogue of a matrix product (`addmm` with alpha and beta), the products with A are one for all
layers, and autograd keeps the input and the products with A, which are as narrow as the rank. That a LoRA
layer's backward pass needs no more is shown in Unsloth (unsloth.ai/blog, "manual autograd"). The narrow
product always comes first and the wide one is added to it: wide ones are bound by arithmetic and read their
summand meanwhile, narrow ones are bound by memory. Where there is room behind each row of the input, the
products with A lie there and B behind the weight, and both products are one, a little longer. So it is with
the gradient of an output, its product with B, and A below the weight.

T: tokens. I: inputs. O: outputs of a layer. R: the rank; S: the ranks of all layers together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.training.optimizations.lora import room
from worker.training.optimizations.lora.layers import Adapters, Call, Layer, NarrowProducts


def lora_linears(
    x: torch.Tensor,
    layers: Sequence[Layer],
    adapters: Adapters,
    parameters: Sequence[torch.Tensor],
    summand: torch.Tensor | None = None,
    narrow: NarrowProducts | None = None,
) -> tuple[torch.Tensor, ...]:
    """What every layer makes of the input [..., I], [..., O] each. `summand` is added to the output of a
    layer that is alone and has no bias. `narrow`: None: PyTorch's products.

    `parameters` are A and B of every layer in turn, which get the gradients. Layers with dropout draw a mask
    each, in their order, from the same random numbers that PEFT's layers draw.
    """
    can_lie_beside = all(layer.read_beside is not None for layer in layers)
    is_beside = room.take(x) == len(adapters.a_SI) and can_lie_beside
    call, kept = Call(tuple(layers), adapters, narrow, is_beside), _Kept()
    if x.requires_grad:
        x = _KeepInput.apply(x, call, kept)
    outputs: tuple[torch.Tensor, ...] = _LoraLinears.apply(x, call, kept, summand, *parameters)
    return outputs


@dataclass
class _Kept:
    """Whose saved tensors the backward pass reads: input, products with A, masks. `inner_TS` is there until
    the forward pass has read it."""

    ctx: Any = None
    inner_TS: torch.Tensor | None = None

    def compute(self, ctx: Any, x: torch.Tensor, call: Call) -> None:
        x_TI = x.reshape(-1, x.shape[-1])
        ranks = len(call.adapters.a_SI)
        with torch.autocast(x.device.type, enabled=False):
            if call.is_beside:
                inner_TS = room.widen(x_TI, ranks)[:, x_TI.shape[1] :]
            else:
                inner_TS = x_TI.new_empty(len(x_TI), ranks)
            masks = _write_down(x_TI, call.layers, call.adapters, out=inner_TS)
        self.inner_TS = inner_TS
        ctx.save_for_backward(x_TI, inner_TS, *masks)
        self.ctx = ctx


class _KeepInput(torch.autograd.Function):
    """Hands the input on and keeps what the backward pass needs, before the layers compute anything.

    Where activations are computed again, PyTorch stops as soon as all that is kept is there: the output of
    a decoder layer's last product, which nobody keeps, is not computed a second time.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: Call, kept: _Kept) -> torch.Tensor:
        kept.compute(ctx, x, call)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad, None, None


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        call: Call,
        kept: _Kept,
        summand: torch.Tensor | None,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        if kept.ctx is None:  # an input without a gradient
            kept.compute(ctx, x, call)
        inner_TS, kept.inner_TS = kept.inner_TS, None
        assert inner_TS is not None
        x_TI = x.reshape(-1, x.shape[-1])
        summand_TO = None if summand is None else summand.reshape(len(x_TI), -1).contiguous()
        inners = inner_TS.split(call.adapters.ranks, dim=1)
        with torch.autocast(x.device.type, enabled=False):
            outputs = [
                _up(x_TI, layer, inner_TR, b_OR, call, summand_TO)
                for layer, b_OR, inner_TR in zip(call.layers, call.adapters.b_OR, inners, strict=True)
            ]
        ctx.call = call
        if kept.ctx is not ctx:
            ctx.kept = kept.ctx
        return tuple(y_TO.view(*x.shape[:-1], -1) for y_TO in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_TI, inner_TS, *masks = getattr(ctx, "kept", ctx).saved_tensors
        layers = ctx.call.layers
        if all(grad is None for grad in grads):
            return (None,) * (4 + 2 * len(layers))
        grads_TO = [None if grad is None else grad.reshape(len(x_TI), -1) for grad in grads]
        with torch.autocast(x_TI.device.type, enabled=False):
            wide_TW = _take_room(grads[0], grads_TO[0], ctx.call) if len(layers) == 1 else None
            if wide_TW is not None:
                grad_inner_TS = wide_TW[:, -inner_TS.shape[1] :]
            else:
                # A layer whose output was not used has no gradient.
                grad_inner_TS = torch.zeros_like(inner_TS) if None in grads else torch.empty_like(inner_TS)
            grad_bs = _grads_through_b(grads_TO, inner_TS, grad_inner_TS, ctx.call)
            grad_as = _grads_of_a(x_TI, grad_inner_TS, masks, ctx.call)
            grad_x = None
            if ctx.needs_input_grad[0]:
                if wide_TW is not None:
                    grad_x = torch.mm(wide_TW, layers[0].read_above(x_TI.dtype))
                else:
                    grad_x = _grad_of_input(x_TI, grads_TO, grad_inner_TS, masks, ctx.call)
                grad_x = grad_x.view(*next(grad for grad in grads if grad is not None).shape[:-1], -1)
        gradients: list[torch.Tensor | None] = []
        for grad_a_RI, grad_b_OR in zip(grad_as, grad_bs, strict=True):
            gradients += [grad_a_RI, grad_b_OR] if grad_b_OR is not None else [None, None]
        return grad_x, None, None, grads[0] if ctx.needs_input_grad[3] else None, *gradients


def _take_room(grad: torch.Tensor | None, grad_TO: torch.Tensor | None, call: Call) -> torch.Tensor | None:
    """The gradient of a layer's output with room for its product with B, [T, O + R]; None: there is none."""
    (layer,), ranks = call.layers, len(call.adapters.a_SI)
    if grad is None or grad_TO is None or room.take(grad) != ranks or layer.read_above is None:
        return None
    return None if layer.dropout else room.widen(grad_TO, ranks)


def _keep(x_TI: torch.Tensor, mask_TI: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """What dropout leaves of the input, where it was drawn already; None: all."""
    if mask_TI is None:
        return x_TI
    kept_TI: torch.Tensor = torch.ops.aten.native_dropout_backward(x_TI, mask_TI, 1 / (1 - dropout))
    return kept_TI


def _write_down(
    x_TI: torch.Tensor, layers: Sequence[Layer], adapters: Adapters, out: torch.Tensor
) -> list[torch.Tensor | None]:
    """Write the scaled products with A, side by side, [T, S]; answers where each layer's dropout kept the
    input, None: everywhere."""
    if not any(layer.dropout for layer in layers) and len({layer.scaling for layer in layers}) == 1:
        _scaled_product(x_TI, adapters.a_SI.t(), layers[0].scaling, out=out)
        return [None] * len(layers)
    masks: list[torch.Tensor | None] = []
    parts = (adapters.a_SI.split(adapters.ranks), out.split(adapters.ranks, dim=1))
    for layer, a_RI, inner_TR in zip(layers, *parts, strict=True):
        kept_TI, mask_TI = torch.native_dropout(x_TI, layer.dropout, True) if layer.dropout else (x_TI, None)
        masks.append(mask_TI)
        _scaled_product(kept_TI, a_RI.t(), layer.scaling, out=inner_TR)
    return masks


def _up(
    x_TI: torch.Tensor,
    layer: Layer,
    inner_TR: torch.Tensor,
    b_OR: torch.Tensor,
    call: Call,
    summand_TO: torch.Tensor | None,
) -> torch.Tensor:
    """The output of a layer, [T, O]."""
    plus, narrow = layer.bias_O if summand_TO is None else summand_TO, call.narrow
    if call.is_beside:
        assert layer.read_beside is not None
        x_TW = room.widen(x_TI, len(call.adapters.a_SI))
        return _product(x_TW, layer.read_beside(x_TI.dtype).t(), plus)
    if narrow and summand_TO is not None and b_OR.shape[1] <= narrow.MOST_RANKS_ADDED:
        y_TO = narrow.add(summand_TO, inner_TR, b_OR)
    else:
        y_TO = _product(inner_TR, b_OR.t(), plus)
    return y_TO.addmm_(x_TI, layer.weight.read(x_TI.dtype).t())


def _grads_through_b(
    grads_TO: Sequence[torch.Tensor | None],
    inner_TS: torch.Tensor,
    grad_inner_TS: torch.Tensor,
    call: Call,
) -> list[torch.Tensor | None]:
    """That of every B, [O, R]; those of the products with A are written to `grad_inner_TS`, scaled."""
    ranks, narrow = call.adapters.ranks, call.narrow
    parts = (inner_TS.split(ranks, dim=1), grad_inner_TS.split(ranks, dim=1))
    found: list[torch.Tensor | None] = []
    for layer, b_OR, grad_TO, inner_TR, out_TR in zip(
        call.layers, call.adapters.b_OR, grads_TO, *parts, strict=True
    ):
        if grad_TO is None:
            found.append(None)
        elif narrow and b_OR.shape[1] <= narrow.MOST_RANKS_LOOKED_AT and grad_TO.stride(1) == 1:
            found.append(narrow.gradients(grad_TO, inner_TR, b_OR, layer.scaling, out_TR))
        else:
            _scaled_product(grad_TO, b_OR, layer.scaling, out=out_TR)
            found.append(_gradient(grad_TO.t(), inner_TR))
    return found


def _grads_of_a(
    x_TI: torch.Tensor, grad_inner_TS: torch.Tensor, masks: Sequence[torch.Tensor | None], call: Call
) -> Sequence[torch.Tensor]:
    """[R, I] for every layer."""
    layers, ranks = call.layers, call.adapters.ranks
    if all(mask is None for mask in masks):
        return _gradient(grad_inner_TS.t(), x_TI).split(ranks)
    if call.narrow:
        return call.narrow.grads_of_a_under_dropout(x_TI, grad_inner_TS, masks, _scales(layers), ranks)
    parts = zip(layers, masks, grad_inner_TS.split(ranks, dim=1), strict=True)
    return [
        _gradient(grad_inner_TR.t(), _keep(x_TI, mask_TI, layer.dropout))
        for layer, mask_TI, grad_inner_TR in parts
    ]


def _scales(layers: Sequence[Layer]) -> list[float]:
    """What dropout multiplies by that which it keeps."""
    return [1 / (1 - layer.dropout) for layer in layers]


def _grad_of_input(
    x_TI: torch.Tensor,
    grads_TO: Sequence[torch.Tensor | None],
    grad_inner_TS: torch.Tensor,
    masks: Sequence[torch.Tensor | None],
    call: Call,
) -> torch.Tensor:
    """[T, I], through the adapters and through the weights of all layers."""
    grad_x_TI = _grad_through_adapters(grad_inner_TS, masks, call)
    for layer, grad_TO in zip(call.layers, grads_TO, strict=True):
        if grad_TO is not None:
            grad_x_TI.addmm_(grad_TO, layer.weight.read(x_TI.dtype))
    return grad_x_TI


def _grad_through_adapters(
    grad_inner_TS: torch.Tensor, masks: Sequence[torch.Tensor | None], call: Call
) -> torch.Tensor:
    """[T, I], new memory."""
    adapters, layers = call.adapters, call.layers
    if all(mask is None for mask in masks):
        return torch.mm(grad_inner_TS, adapters.a_SI)
    if call.narrow:
        scales, ranks = _scales(layers), adapters.ranks
        return call.narrow.through_dropout(grad_inner_TS, adapters.a_SI, masks, scales, ranks)
    parts = (adapters.a_SI.split(adapters.ranks), grad_inner_TS.split(adapters.ranks, dim=1))
    grads_TI = (
        _keep(torch.mm(grad_inner_TR, a_RI), mask_TI, layer.dropout)
        for layer, mask_TI, a_RI, grad_inner_TR in zip(layers, masks, *parts, strict=True)
    )
    grad_x_TI = next(grads_TI)
    for grad_TI in grads_TI:
        grad_x_TI += grad_TI
    return grad_x_TI


def _gradient(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product that becomes the gradient of a parameter: in float32, as they are, where PyTorch has that."""
    if left.is_cuda and left.dtype.itemsize == 2:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


def _product(left: torch.Tensor, right: torch.Tensor, plus: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(left, right) if plus is None else torch.addmm(plus, left, right)


def _scaled_product(
    left: torch.Tensor, right: torch.Tensor, scale: float, *, out: torch.Tensor
) -> torch.Tensor:
    """One product whose epilogue scales it; what is there is not read."""
    return torch.addmm(out, left, right, beta=0, alpha=scale, out=out)
