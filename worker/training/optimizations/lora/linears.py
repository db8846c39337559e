"""Replaces `forward` of a PeftModel's LoRA layers by the LoRA function, until `remove()`.

PEFT's modules, parameters and saved files do not change: an attribute of the module hides its method. Layers
that the function does not support stay PEFT's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as LoraOverDense, LoraLayer
from peft.tuners.lora.bnb import Linear4bit as LoraOver4Bit
from torch import nn
from transformers import PreTrainedModel

from worker.models.linear_groups import group_by_input
from worker.training.optimizations.lora.frozen_linear import FrozenLinear
from worker.training.optimizations.lora.group import ADAPTER, LIBRARY_KERNELS, LoraKernels, LoraLayerGroup


class FusedLora:
    """The LoRA function applied to a model."""

    def __init__(self, model: PeftModel, dtype: torch.dtype, kernels: LoraKernels = LIBRARY_KERNELS) -> None:
        """`dtype`: the type in which both the base model and the adapters compute."""
        self._dtype = dtype
        self._groups = [LoraLayerGroup(layers, dtype, kernels) for layers in find_groups(model)]
        self._group_of = {layer: group for group in self._groups for layer in group.layers}
        self._forwards: list[tuple[nn.Module, Callable[..., torch.Tensor]]] = [
            (layer, _make_forward(layer, group, place))
            for group in self._groups
            for place, layer in enumerate(group.layers)
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
        self._hook = entry.register_forward_pre_hook(self._begin_pass)
        self._replace_forwards()

    @property
    def dequantized_bytes(self) -> int:
        """Bytes that caching all 4-bit weights dequantized takes."""
        frozen = sum(layer.weight.outputs * layer.weight.inputs for layer in self._frozen)
        return frozen * self._dtype.itemsize + sum(group.dequantized_bytes for group in self._groups)

    def cache_dequantized(self) -> None:
        """Cache all 4-bit weights dequantized, in place of dequantizing them in every pass."""
        for group in self._groups:
            group.cache_dequantized()
        for frozen in self._frozen:
            frozen.weight.cache(self._dtype)

    def drop_dequantized(self) -> bool:
        """Free the cached weights. Returns whether there were any."""
        were_cached = [group.drop_dequantized() for group in self._groups]
        were_cached += [frozen.weight.drop_cache() for frozen in self._frozen]
        return any(were_cached)

    def input_padding(self, *layers: nn.Module) -> int:
        """How many padding columns the next input of these layers should have; 0: none."""
        groups = [group for layer in layers if (group := self._group_in_use(layer))]
        return groups[0].input_padding() if groups else 0

    def output_grad_padding(self, layer: nn.Module) -> int:
        """How many padding columns the gradient of this layer's output should have; 0: none."""
        group = self._group_in_use(layer)
        return group.output_grad_padding() if group else 0

    def add_next(self, layer: nn.Module, summand: torch.Tensor) -> bool:
        """Add `summand` to the output of a layer's next call. Returns whether the layer supports it: it must
        be computed by the function, and alone in its group."""
        group = self._group_in_use(layer)
        return group is not None and group.add_next(summand)

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

    def _begin_pass(self, _module: nn.Module, _arguments: Any) -> None:
        copies = [copy for group in self._groups for copy in group.begin_pass()]
        # One launch for all these small matrices. Strided ones (next to cached weights) are copied apart,
        # since one of them would make PyTorch copy all of them one by one.
        for is_whole in (True, False):
            some = [(to, origin) for to, origin in copies if to.is_contiguous() == is_whole]
            if some:
                torch._foreach_copy_([to for to, _from in some], [origin for _to, origin in some])

    def _group_in_use(self, layer: nn.Module) -> LoraLayerGroup | None:
        return self._group_of.get(layer) if "forward" in vars(layer) else None

    def _replace_forwards(self) -> None:
        for layer, forward in self._forwards:
            vars(layer)["forward"] = forward

    def _restore_forwards(self) -> None:
        for layer, _forward in self._forwards:
            vars(layer).pop("forward", None)


def _find_frozen(model: nn.Module) -> list[Linear4bit]:
    adapted = {module.get_base_layer() for module in model.modules() if isinstance(module, LoraLayer)}
    return [module for module in model.modules() if type(module) is Linear4bit and module not in adapted]


def find_groups(model: nn.Module) -> list[list[LoraLayer]]:
    """The LoRA layers that the function supports, grouped by their input."""
    layers = {name: module for name, module in model.named_modules() if is_plain(module)}
    return [[layers[name] for name in names] for names in group_by_input(layers)]


def is_plain(module: nn.Module) -> bool:
    """Whether this is plain LoRA (no DoRA or other variant) on a frozen linear layer."""
    if type(module) not in (LoraOver4Bit, LoraOverDense):
        return False
    return _is_plain_lora(module)


def _is_plain_lora(module: LoraLayer) -> bool:
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


def _make_forward(layer: LoraLayer, group: LoraLayerGroup, place: int) -> Callable[..., torch.Tensor]:
    plain = type(layer).forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not group.supports(x):
            output: torch.Tensor = plain(layer, x, *args, **kwargs)
            summand = group.take_summand()
            return output if summand is None else summand + output
        return group.output(place, x)

    return forward
