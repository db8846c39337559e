"""The residual stream of a decoder without additions of their own.

What a layer adds to the stream is added by the product that makes it, where that is a LoRA layer; and the
two gradients that meet before a norm meet in the norm's kernel (the idea is Liger-Kernel's fused addition and
norm). Norms and their gradients leave room behind each row for what LoRA layers make of it. For families
whose decoder layer is Llama's.

T: tokens. H: the hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from worker.kernels import norm
from worker.training.optimizations.lora import room

# transformers 5.23 checkpoints within the `forward` that is hidden here, releases before it around it.
_CHECKPOINTS_IN_FORWARD = "__call__" not in vars(GradientCheckpointingLayer)


class Linears(Protocol):
    """LoRA layers that can do more than they are called for."""

    def add_next(self, layer: nn.Module, summand: torch.Tensor) -> bool:
        """Make the next call of a layer add this to its output; False: it can't."""

    def room_before(self, *layers: nn.Module) -> int:
        """How many elements these layers' next input should have free behind each row; 0: none."""

    def room_behind(self, layer: nn.Module) -> int:
        """How many elements the gradient of this layer's output should have free behind each row; 0: none."""


@contextmanager
def applied(model: PeftModel, linears: Linears) -> Iterator[None]:
    """Within it the decoder's layers compute so."""
    layers = [module for module in model.get_base_model().modules() if _is_layer(module)]
    for layer in layers:
        vars(layer)["forward"] = _make_forward(layer, linears)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _is_layer(module: nn.Module) -> bool:
    parts = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    return {name for name, _child in module.named_children()} == parts


def _make_forward(layer: Any, linears: Linears) -> Callable[..., torch.Tensor]:
    def compute(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        attention, mlp = layer.self_attn, layer.mlp
        # What comes in was made by the down_proj of the layer before, which is taken to be as this layer's:
        # where its rank is another one the room is not used.
        rooms = _Rooms(
            linears.room_before(attention.q_proj, attention.k_proj, attention.v_proj),
            linears.room_behind(mlp.down_proj),
        )
        normed, stream = _norm(hidden_states, layer.input_layernorm, rooms)
        is_added = linears.add_next(attention.o_proj, stream)
        output, _weights = attention(normed, *args, **kwargs)
        stream = output if is_added else stream + output
        rooms = _Rooms(linears.room_before(mlp.gate_proj, mlp.up_proj), linears.room_behind(attention.o_proj))
        normed, stream = _norm(stream, layer.post_attention_layernorm, rooms)
        is_added = linears.add_next(mlp.down_proj, stream)
        output = mlp(normed)
        return output if is_added else stream + output

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        if not (_CHECKPOINTS_IN_FORWARD and layer.gradient_checkpointing and layer.training):
            return compute(*args, **kwargs)
        output: torch.Tensor = layer._gradient_checkpointing_func(partial(compute, **kwargs), *args)
        return output

    return forward


@dataclass(frozen=True)
class _Rooms:
    """Behind each row of the normed stream, and of the stream's gradient."""

    normed: int
    gradient: int


def _norm(stream: torch.Tensor, module: Any, rooms: _Rooms) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed stream, and the stream; what reads it from now on has its gradient added in the norm's."""
    if stream.dtype != module.weight.dtype:
        return module(stream), stream
    normed, passed = _NormAndPass.apply(stream, module.weight, module.variance_epsilon, rooms)
    return room.lend(normed, rooms.normed), passed


class _NormAndPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stream: torch.Tensor, weight_H: torch.Tensor, epsilon: float, rooms: _Rooms
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_TH = stream.reshape(-1, stream.shape[-1])
        normed_TH, scale_T = norm.rms_norm_and_scale(x_TH, weight_H, epsilon, padding=rooms.normed)
        ctx.save_for_backward(x_TH, weight_H, scale_T)
        ctx.rooms = rooms
        return normed_TH.view(stream.shape), stream.view_as(stream)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, passed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TH, weight_H, scale_T = ctx.saved_tensors
        grad_TH, passed_TH = grad.reshape(x_TH.shape).contiguous(), passed.reshape(x_TH.shape)
        if passed_TH.stride(1) != 1:
            passed_TH = passed_TH.contiguous()
        grad_x_TH = norm.gradient(grad_TH, passed_TH, x_TH, weight_H, scale_T, padding=ctx.rooms.gradient)
        return room.lend(grad_x_TH.view(grad.shape), ctx.rooms.gradient), None, None, None
