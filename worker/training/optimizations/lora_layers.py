"""LoRA layers of families that the explicit decoder does not compute: each by an autograd function of its
own.

PEFT's modules, parameters and saved files do not change: until `remove()` an attribute of the module hides
its method. Layers that the function does not support stay PEFT's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as LoraOverDense, LoraLayer
from peft.tuners.lora.bnb import Linear4bit as LoraOver4Bit
from torch import nn
from transformers import PreTrainedModel

from worker.decoder.adapters import Adapter, LowRankMatmul, SavedInput
from worker.decoder.lora_linears import LinearLayer, LoraLinears, copy_all
from worker.models.frozen_weights import BITSANDBYTES, Dequantizers, weight_of
from worker.training.optimizations.frozen_linear import FrozenLinear

ADAPTER = "default"


@dataclass(frozen=True)
class LoraKernels:
    """Kernels of LoRA layers. `low_rank`: None for PyTorch's products."""

    dequantizers: Dequantizers
    low_rank: LowRankMatmul | None


LIBRARY_KERNELS = LoraKernels(BITSANDBYTES, None)


class FusedLora:
    """The autograd function applied to a model."""

    def __init__(self, model: PeftModel, dtype: torch.dtype, kernels: LoraKernels = LIBRARY_KERNELS) -> None:
        """`dtype`: the type in which both the base model and the adapters compute."""
        self._dtype = dtype
        self._linears = {
            module: LoraLinears([read_linear(module, kernels.dequantizers)], dtype, kernels.low_rank)
            for module in model.modules()
            if is_plain(module)
        }
        self._forwards: list[tuple[nn.Module, Callable[..., torch.Tensor]]] = [
            (module, _make_forward(module, linears, dtype)) for module, linears in self._linears.items()
        ]
        self._frozen: list[FrozenLinear] = []
        if kernels.dequantizers.with_b is not None:
            for layer in _find_frozen(model):
                frozen = FrozenLinear(layer, dtype, kernels.dequantizers)
                self._frozen.append(frozen)
                self._forwards.append((layer, frozen.forward))
        base = model.get_base_model()
        # The decoder is called for the loss, without its output layer.
        entry = base.base_model if isinstance(base, PreTrainedModel) else model
        self._hook = entry.register_forward_pre_hook(self._copy_adapters)
        self._replace_forwards()

    @property
    def dequantized_bytes(self) -> int:
        """Bytes that caching all 4-bit weights dequantized takes."""
        frozen = sum(layer.weight.outputs * layer.weight.inputs for layer in self._frozen)
        adapted = sum(linears.dequantized_bytes for linears in self._linears.values())
        return frozen * self._dtype.itemsize + adapted

    def cache_dequantized(self) -> None:
        """Cache all 4-bit weights dequantized, in place of dequantizing them in every pass."""
        for linears in self._linears.values():
            linears.cache_dequantized()
        for frozen in self._frozen:
            frozen.weight.cache(self._dtype)

    def drop_dequantized(self) -> bool:
        """Free the cached weights. Returns whether there were any."""
        were_cached = [linears.drop_dequantized() for linears in self._linears.values()]
        were_cached += [frozen.weight.drop_cache() for frozen in self._frozen]
        return any(were_cached)

    def remove(self) -> None:
        """Restore PEFT's own `forward` of all layers."""
        self._restore_forwards()
        self._hook.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within this context every layer computes PEFT's own `forward`."""
        self._restore_forwards()
        try:
            yield
        finally:
            self._replace_forwards()

    def _copy_adapters(self, _module: nn.Module, _arguments: Any) -> None:
        copy_all(self._linears.values())

    def _replace_forwards(self) -> None:
        for layer, forward in self._forwards:
            vars(layer)["forward"] = forward

    def _restore_forwards(self) -> None:
        for layer, _forward in self._forwards:
            vars(layer).pop("forward", None)


def is_plain(module: nn.Module) -> bool:
    """Whether this is plain LoRA (no DoRA or other variant) on a frozen linear layer."""
    if not isinstance(module, LoraLayer) or type(module) not in (LoraOver4Bit, LoraOverDense):
        return False
    base = module.get_base_layer()
    return (
        type(base) in (Linear4bit, nn.Linear)
        and module.active_adapters == [ADAPTER]
        and not module.lora_variant
        and not getattr(module, "fan_in_fan_out", False)
        and type(module.lora_dropout[ADAPTER]) in (nn.Dropout, nn.Identity)
        and module.lora_A[ADAPTER].bias is None
        and module.lora_B[ADAPTER].bias is None
        and not any(parameter.requires_grad for parameter in base.parameters())
    )


def read_linear(module: Any, dequantizers: Dequantizers) -> LinearLayer:
    """The weight, bias and adapter of a linear layer, or of one with plain LoRA."""
    adapter, linear = None, module
    if isinstance(module, LoraLayer):
        linear = module.get_base_layer()
        adapter = Adapter(
            module.lora_A[ADAPTER].weight,
            module.lora_B[ADAPTER].weight,
            module.scaling[ADAPTER],
            module.lora_dropout[ADAPTER],
        )
    bias_O = None if linear.bias is None else linear.bias.detach()
    return LinearLayer(weight_of(linear, dequantizers), bias_O, adapter)


def _find_frozen(model: nn.Module) -> list[Linear4bit]:
    adapted = {module.get_base_layer() for module in model.modules() if isinstance(module, LoraLayer)}
    return [module for module in model.modules() if type(module) is Linear4bit and module not in adapted]


def _make_forward(layer: Any, linears: LoraLinears, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    plain = type(layer).forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device = x.device.type
        is_mixed = torch.is_autocast_enabled(device)
        products = torch.get_autocast_dtype(device) if is_mixed else layer.lora_A[ADAPTER].weight.dtype
        is_on = linears.has_copies and not layer.disable_adapters and not layer.merged
        if args or kwargs or products != dtype or not is_on:
            output: torch.Tensor = plain(layer, x, *args, **kwargs)
            return output
        output = _LoraLinear.apply(x.to(dtype), linears, *linears.parameters)
        return output.to(x.dtype)

    return forward


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linears: LoraLinears, *_parameters: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            (y_TO,), saved = linears.forward(x.reshape(-1, x.shape[-1]))
        ctx.linears, ctx.dropouts, ctx.shape = linears, saved.dropouts, x.shape
        ctx.save_for_backward(saved.x_TI, saved.inner_TS, *saved.masks)
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, inner_TS, *masks = ctx.saved_tensors
        saved = SavedInput(x_TI, inner_TS, tuple(masks), ctx.dropouts)
        with torch.autocast(grad.device.type, enabled=False):
            grad_x_TI, parameters = ctx.linears.backward(
                saved, [grad.reshape(len(x_TI), -1)], needs_x=ctx.needs_input_grad[0]
            )
        return None if grad_x_TI is None else grad_x_TI.view(ctx.shape), None, *parameters
