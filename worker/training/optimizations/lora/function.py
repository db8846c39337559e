"""LoRA linear layers that read one input, as one autograd function. Knows no module and no model.

PEFT computes an adapter with six kernels and saves their intermediate results. Here every sum and every
scaling is the epilogue of a matrix product (`addmm` with alpha and beta), all layers share one product with
A, and autograd saves the input and the products with A [T, S]. That a LoRA layer's backward pass needs no
more is shown in Unsloth (unsloth.ai/blog, "manual autograd"). The low-rank product is made first and the
product with the weight adds to it in float32: that one is bound by arithmetic and reads its summand
meanwhile, the low-rank one is bound by memory. What may be larger than both, a bias or the residual stream,
is added last: added before, it would round away what a new adapter contributes. Where the input has padding
columns, the products with A are written there: [x | x A^T] times [W | B]^T is one product. The same is done
for the gradient of an output, with A below the weight (decision 23).

T: tokens. I: inputs. O: outputs of a layer. R: the rank; S: the ranks of all layers together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.training.optimizations.lora import padded_columns
from worker.training.optimizations.lora.layers import Adapters, Call, LoraLinearSpec, LowRankMatmul


def lora_linears(
    x: torch.Tensor,
    layers: Sequence[LoraLinearSpec],
    adapters: Adapters,
    parameters: Sequence[torch.Tensor],
    summand: torch.Tensor | None = None,
    low_rank: LowRankMatmul | None = None,
) -> tuple[torch.Tensor, ...]:
    """The output [..., O] of every layer for one input [..., I].

    `parameters` are A and B of every layer in turn, which get the gradients. `summand` [..., O] is added to
    the output, for a single layer without bias. `low_rank`: None for PyTorch's products. Each layer with
    dropout draws a mask, in their order, from the random numbers that PEFT's layers would draw.
    """
    can_append_b = all(layer.read_with_b is not None for layer in layers)
    is_padded = padded_columns.take_padding(x) == len(adapters.a_SI) and can_append_b
    call, saved = Call(tuple(layers), adapters, low_rank, is_padded), _Saved()
    if x.requires_grad:
        x = _SaveInput.apply(x, call, saved)
    outputs: tuple[torch.Tensor, ...] = _LoraLinears.apply(x, call, saved, summand, *parameters)
    return outputs


@dataclass
class _Saved:
    """The context whose saved tensors the backward pass reads: input, products with A, masks.

    `inner_TS`: the products with A, until the forward pass has read them.
    """

    ctx: Any = None
    inner_TS: torch.Tensor | None = None

    def compute(self, ctx: Any, x: torch.Tensor, call: Call) -> None:
        x_TI = x.reshape(-1, x.shape[-1])
        ranks = len(call.adapters.a_SI)
        with torch.autocast(x.device.type, enabled=False):
            if call.is_padded:
                inner_TS = padded_columns.with_padding(x_TI, ranks)[:, x_TI.shape[1] :]
            else:
                inner_TS = x_TI.new_empty(len(x_TI), ranks)
            masks = _project_down(x_TI, call.layers, call.adapters, out=inner_TS)
        self.inner_TS = inner_TS
        ctx.save_for_backward(x_TI, inner_TS, *masks)
        self.ctx = ctx


class _SaveInput(torch.autograd.Function):
    """Returns the input, and saves what the backward pass needs before the layers compute their outputs.

    Under gradient checkpointing PyTorch stops recomputing once all saved tensors exist, so the last product
    of a decoder layer, whose output is not saved, is not computed a second time.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: Call, saved: _Saved) -> torch.Tensor:
        saved.compute(ctx, x, call)
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
        saved: _Saved,
        summand: torch.Tensor | None,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        if saved.ctx is None:  # an input without a gradient
            saved.compute(ctx, x, call)
        inner_TS, saved.inner_TS = saved.inner_TS, None
        assert inner_TS is not None
        x_TI = x.reshape(-1, x.shape[-1])
        summand_TO = None if summand is None else summand.reshape(len(x_TI), -1).contiguous()
        inners = inner_TS.split(call.adapters.ranks, dim=1)
        with torch.autocast(x.device.type, enabled=False):
            outputs = [
                _project_up(x_TI, layer, inner_TR, b_OR, call, summand_TO)
                for layer, b_OR, inner_TR in zip(call.layers, call.adapters.b_OR, inners, strict=True)
            ]
        ctx.call = call
        if saved.ctx is not ctx:
            ctx.saved = saved.ctx
        return tuple(y_TO.view(*x.shape[:-1], -1) for y_TO in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_TI, inner_TS, *masks = getattr(ctx, "saved", ctx).saved_tensors
        layers = ctx.call.layers
        if all(grad is None for grad in grads):
            return (None,) * (4 + 2 * len(layers))
        grads_TO = [None if grad is None else grad.reshape(len(x_TI), -1) for grad in grads]
        with torch.autocast(x_TI.device.type, enabled=False):
            wide_TW = _padded_gradient(grads[0], grads_TO[0], ctx.call) if len(layers) == 1 else None
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
                    grad_x = torch.mm(wide_TW, layers[0].read_with_a(x_TI.dtype))
                else:
                    grad_x = _grad_of_input(x_TI, grads_TO, grad_inner_TS, masks, ctx.call)
                grad_x = grad_x.view(*next(grad for grad in grads if grad is not None).shape[:-1], -1)
        gradients: list[torch.Tensor | None] = []
        for grad_a_RI, grad_b_OR in zip(grad_as, grad_bs, strict=True):
            gradients += [grad_a_RI, grad_b_OR] if grad_b_OR is not None else [None, None]
        return grad_x, None, None, grads[0] if ctx.needs_input_grad[3] else None, *gradients


def _padded_gradient(
    grad: torch.Tensor | None, grad_TO: torch.Tensor | None, call: Call
) -> torch.Tensor | None:
    """The gradient of a layer's output with its padding, [T, O + R]; None where it has none that fits."""
    (layer,), ranks = call.layers, len(call.adapters.a_SI)
    if (
        grad is None
        or grad_TO is None
        or padded_columns.take_padding(grad) != ranks
        or layer.read_with_a is None
    ):
        return None
    return None if layer.dropout else padded_columns.with_padding(grad_TO, ranks)


def _apply_mask(x_TI: torch.Tensor, mask_TI: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """The input after dropout with a mask drawn before; None is a mask of ones."""
    if mask_TI is None:
        return x_TI
    kept_TI: torch.Tensor = torch.ops.aten.native_dropout_backward(x_TI, mask_TI, 1 / (1 - dropout))
    return kept_TI


def _project_down(
    x_TI: torch.Tensor, layers: Sequence[LoraLinearSpec], adapters: Adapters, out: torch.Tensor
) -> list[torch.Tensor | None]:
    """Write the products with A times `scaling` to `out` [T, S]. Returns each layer's dropout mask [T, I],
    None without dropout."""
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


def _project_up(
    x_TI: torch.Tensor,
    layer: LoraLinearSpec,
    inner_TR: torch.Tensor,
    b_OR: torch.Tensor,
    call: Call,
    summand_TO: torch.Tensor | None,
) -> torch.Tensor:
    """The output of a layer, [T, O], from its input and its product with A."""
    plus = layer.bias_O if summand_TO is None else summand_TO
    if call.is_padded:
        assert layer.read_with_b is not None
        x_TW = padded_columns.with_padding(x_TI, len(call.adapters.a_SI))
        return _product(x_TW, layer.read_with_b(x_TI.dtype).t(), plus)
    y_TO = torch.mm(inner_TR, b_OR.t()).addmm_(x_TI, layer.weight.read(x_TI.dtype).t())
    return y_TO if plus is None else y_TO.add_(plus)


def _grads_through_b(
    grads_TO: Sequence[torch.Tensor | None],
    inner_TS: torch.Tensor,
    grad_inner_TS: torch.Tensor,
    call: Call,
) -> list[torch.Tensor | None]:
    """Return the gradient of every B, [O, R]; write the scaled ones of the products with A."""
    ranks, low_rank = call.adapters.ranks, call.low_rank
    parts = (inner_TS.split(ranks, dim=1), grad_inner_TS.split(ranks, dim=1))
    found: list[torch.Tensor | None] = []
    for layer, b_OR, grad_TO, inner_TR, out_TR in zip(
        call.layers, call.adapters.b_OR, grads_TO, *parts, strict=True
    ):
        if grad_TO is None:
            found.append(None)
        elif low_rank and b_OR.shape[1] <= low_rank.MAX_RANK_GRADIENTS and grad_TO.stride(1) == 1:
            found.append(low_rank.gradients(grad_TO, inner_TR, b_OR, layer.scaling, out_TR))
        else:
            _scaled_product(grad_TO, b_OR, layer.scaling, out=out_TR)
            found.append(_gradient(grad_TO.t(), inner_TR))
    return found


def _grads_of_a(
    x_TI: torch.Tensor, grad_inner_TS: torch.Tensor, masks: Sequence[torch.Tensor | None], call: Call
) -> Sequence[torch.Tensor]:
    """The gradient of every A, [R, I]."""
    layers, ranks = call.layers, call.adapters.ranks
    if all(mask is None for mask in masks):
        return _gradient(grad_inner_TS.t(), x_TI).split(ranks)
    if call.low_rank:
        return call.low_rank.grads_of_a_under_dropout(x_TI, grad_inner_TS, masks, _scales(layers), ranks)
    parts = zip(layers, masks, grad_inner_TS.split(ranks, dim=1), strict=True)
    return [
        _gradient(grad_inner_TR.t(), _apply_mask(x_TI, mask_TI, layer.dropout))
        for layer, mask_TI, grad_inner_TR in parts
    ]


def _scales(layers: Sequence[LoraLinearSpec]) -> list[float]:
    """The factor of dropout for inputs that it does not drop, for every layer."""
    return [1 / (1 - layer.dropout) for layer in layers]


def _grad_of_input(
    x_TI: torch.Tensor,
    grads_TO: Sequence[torch.Tensor | None],
    grad_inner_TS: torch.Tensor,
    masks: Sequence[torch.Tensor | None],
    call: Call,
) -> torch.Tensor:
    """The gradient of the input [T, I], through the adapters and the weights of all layers."""
    grad_x_TI = _grad_through_adapters(grad_inner_TS, masks, call)
    for layer, grad_TO in zip(call.layers, grads_TO, strict=True):
        if grad_TO is not None:
            grad_x_TI.addmm_(grad_TO, layer.weight.read(x_TI.dtype))
    return grad_x_TI


def _grad_through_adapters(
    grad_inner_TS: torch.Tensor, masks: Sequence[torch.Tensor | None], call: Call
) -> torch.Tensor:
    """The gradient of the input through the adapters [T, I], in new memory."""
    adapters, layers = call.adapters, call.layers
    if all(mask is None for mask in masks):
        return torch.mm(grad_inner_TS, adapters.a_SI)
    if call.low_rank:
        scales, ranks = _scales(layers), adapters.ranks
        return call.low_rank.grad_of_x_under_dropout(grad_inner_TS, adapters.a_SI, masks, scales, ranks)
    parts = (adapters.a_SI.split(adapters.ranks), grad_inner_TS.split(adapters.ranks, dim=1))
    grads_TI = (
        _apply_mask(torch.mm(grad_inner_TR, a_RI), mask_TI, layer.dropout)
        for layer, mask_TI, a_RI, grad_inner_TR in zip(layers, masks, *parts, strict=True)
    )
    grad_x_TI = next(grads_TI)
    for grad_TI in grads_TI:
        grad_x_TI += grad_TI
    return grad_x_TI


def _gradient(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter as a product: in float32 where PyTorch supports that output."""
    if left.is_cuda and left.dtype.itemsize == 2:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


def _product(left: torch.Tensor, right: torch.Tensor, plus: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(left, right) if plus is None else torch.addmm(plus, left, right)


def _scaled_product(
    left: torch.Tensor, right: torch.Tensor, scale: float, *, out: torch.Tensor
) -> torch.Tensor:
    """Write left @ right * scale to `out`, scaled in the epilogue; `out` is not read."""
    return torch.addmm(out, left, right, beta=0, alpha=scale, out=out)
