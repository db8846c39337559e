"""Puts the LoRA function into a PeftModel and takes it out again; what it does not know stays PEFT's own.

PEFT's modules, their parameters and what is saved are not touched: only `forward` of a module is, by an
attribute that hides the method.
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

from worker.models.linear_groups import group_by_input
from worker.training.optimizations.lora.frozen_linear import FrozenLinear
from worker.training.optimizations.lora.group import ADAPTER, LIBRARIES, Kernels, LoraLayerGroup


class FastLinears:
    """The LoRA function in a model."""

    def __init__(self, model: PeftModel, dtype: torch.dtype, kernels: Kernels = LIBRARIES) -> None:
        """`dtype`: of the products of base and adapters, which must be one."""
        self._dtype = dtype
        self._groups = [LoraLayerGroup(layers, dtype, kernels) for layers in find_groups(model)]
        self._group_of = {layer: group for group in self._groups for layer in group.layers}
        self._forwards: list[tuple[nn.Module, Callable[..., torch.Tensor]]] = [
            (layer, _make_forward(layer, group, place))
            for group in self._groups
            for place, layer in enumerate(group.layers)
        ]
        self._frozen: list[FrozenLinear] = []
        if kernels.unpacking.beside is not None:
            for layer in _find_frozen(model):
                frozen = FrozenLinear(layer, dtype, kernels.unpacking)
                self._frozen.append(frozen)
                self._forwards.append((layer, frozen.forward))
        self._hook = model.register_forward_pre_hook(self._begin_pass)
        self._put_in()

    @property
    def unpacked_bytes(self) -> int:
        """What it would take to keep all 4-bit weights unpacked."""
        frozen = sum(layer.weight.outputs * layer.weight.inputs for layer in self._frozen)
        return frozen * self._dtype.itemsize + sum(group.unpacked_bytes for group in self._groups)

    def keep_weights(self) -> None:
        """Unpack every weight once, and not in every pass."""
        for group in self._groups:
            group.keep_weights()
        for frozen in self._frozen:
            frozen.weight.keep(self._dtype)

    def forget_weights(self) -> bool:
        """Give that memory back; whether there was any."""
        were_kept = [group.forget_weights() for group in self._groups]
        were_kept += [frozen.weight.forget() for frozen in self._frozen]
        return any(were_kept)

    def room_before(self, *layers: nn.Module) -> int:
        """How many elements these layers' next input should have free behind each row; 0: none."""
        groups = [group for layer in layers if (group := self._group_in_use(layer))]
        return groups[0].room_before() if groups else 0

    def room_behind(self, layer: nn.Module) -> int:
        """How many elements the gradient of this layer's output should have free behind each row; 0: none."""
        group = self._group_in_use(layer)
        return group.room_behind() if group else 0

    def add_next(self, layer: nn.Module, summand: torch.Tensor) -> bool:
        """Make the next call of a layer add this to its output; False: it is none of these layers, or not
        alone in its group."""
        group = self._group_in_use(layer)
        return group is not None and group.add_next(summand)

    def remove(self) -> None:
        """Leave the model as PEFT made it."""
        self._take_out()
        self._hook.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it every layer is PEFT's own."""
        self._take_out()
        try:
            yield
        finally:
            self._put_in()

    def _begin_pass(self, _module: nn.Module, _arguments: Any) -> None:
        copies = [copy for group in self._groups for copy in group.begin_pass()]
        # All in one launch: kernels of their own for so many small matrices would take longer than them. What
        # lies apart, behind weights that are kept, would make PyTorch copy all one by one.
        for is_whole in (True, False):
            some = [(to, origin) for to, origin in copies if to.is_contiguous() == is_whole]
            if some:
                torch._foreach_copy_([to for to, _from in some], [origin for _to, origin in some])

    def _group_in_use(self, layer: nn.Module) -> LoraLayerGroup | None:
        return self._group_of.get(layer) if "forward" in vars(layer) else None

    def _put_in(self) -> None:
        for layer, forward in self._forwards:
            vars(layer)["forward"] = forward

    def _take_out(self) -> None:
        for layer, _forward in self._forwards:
            vars(layer).pop("forward", None)


def _find_frozen(model: nn.Module) -> list[Linear4bit]:
    adapted = {module.get_base_layer() for module in model.modules() if isinstance(module, LoraLayer)}
    return [module for module in model.modules() if type(module) is Linear4bit and module not in adapted]


def find_groups(model: nn.Module) -> list[list[LoraLayer]]:
    """The layers that the function can stand in for, those with one input together."""
    layers = {name: module for name, module in model.named_modules() if is_plain(module)}
    return [[layers[name] for name in names] for names in group_by_input(layers)]


def is_plain(module: nn.Module) -> bool:
    """Whether this is LoRA on a frozen linear layer, with nothing of DoRA and the like about it."""
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
        if args or kwargs or not group.takes(x):
            output: torch.Tensor = plain(layer, x, *args, **kwargs)
            summand = group.take_summand()
            return output if summand is None else summand + output
        return group.output(place, x)

    return forward
