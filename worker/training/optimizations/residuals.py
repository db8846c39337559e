"""Fuses the additions of a decoder's residual stream into other kernels.

A LoRA layer adds its output to the stream in its matrix product; a norm's kernel adds the gradient of the
stream to its own (the idea is Liger-Kernel's fused addition and norm). Norms and their gradients have padding
columns for the LoRA layers that read them. For families whose decoder layer is Llama's.

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
from worker.training.optimizations.lora import padded_columns

# transformers 5.23 checkpoints inside `forward`, which is replaced here; earlier releases around it.
_CHECKPOINTS_IN_FORWARD = "__call__" not in vars(GradientCheckpointingLayer)


class Linears(Protocol):
    """LoRA layers that can add to their output and use padding columns."""

    def add_next(self, layer: nn.Module, summand: torch.Tensor) -> bool:
        """Add `summand` to the output of a layer's next call. Returns whether the layer supports it."""

    def input_padding(self, *layers: nn.Module) -> int:
        """How many padding columns the next input of these layers should have; 0: none."""

    def output_grad_padding(self, layer: nn.Module) -> int:
        """How many padding columns the gradient of this layer's output should have; 0: none."""


@contextmanager
def applied(model: PeftModel, linears: Linears) -> Iterator[None]:
    """Within this context the decoder's layers compute with fused additions."""
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
        # The input is the output of the previous layer's down_proj, which is taken to have this layer's rank;
        # where its rank differs the padding is not used.
        padding = _Padding(
            linears.input_padding(attention.q_proj, attention.k_proj, attention.v_proj),
            linears.output_grad_padding(mlp.down_proj),
        )
        normed, stream = _norm(hidden_states, layer.input_layernorm, padding)
        is_added = linears.add_next(attention.o_proj, stream)
        output, _weights = attention(normed, *args, **kwargs)
        stream = output if is_added else stream + output
        padding = _Padding(
            linears.input_padding(mlp.gate_proj, mlp.up_proj), linears.output_grad_padding(attention.o_proj)
        )
        normed, stream = _norm(stream, layer.post_attention_layernorm, padding)
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
class _Padding:
    """Padding columns of the normed stream, and of the stream's gradient."""

    normed: int
    gradient: int


def _norm(stream: torch.Tensor, module: Any, padding: _Padding) -> tuple[torch.Tensor, torch.Tensor]:
    """(normed stream, stream); the gradient of the returned stream is added in the norm's backward kernel."""
    if stream.dtype != module.weight.dtype:
        return module(stream), stream
    normed, passed = _NormAndPass.apply(stream, module.weight, module.variance_epsilon, padding)
    return padded_columns.mark_padding(normed, padding.normed), passed


class _NormAndPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stream: torch.Tensor, weight_H: torch.Tensor, epsilon: float, padding: _Padding
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_TH = stream.reshape(-1, stream.shape[-1])
        normed_TH, scale_T = norm.rms_norm_and_scale(x_TH, weight_H, epsilon, padding=padding.normed)
        ctx.save_for_backward(x_TH, weight_H, scale_T)
        ctx.padding = padding
        return normed_TH.view(stream.shape), stream.view_as(stream)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, passed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TH, weight_H, scale_T = ctx.saved_tensors
        grad_TH, passed_TH = grad.reshape(x_TH.shape).contiguous(), passed.reshape(x_TH.shape)
        if passed_TH.stride(1) != 1:
            passed_TH = passed_TH.contiguous()
        grad_x_TH = norm.gradient(grad_TH, passed_TH, x_TH, weight_H, scale_T, padding=ctx.padding.gradient)
        return padded_columns.mark_padding(grad_x_TH.view(grad.shape), ctx.padding.gradient), None, None, None
