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
from peft.tuners.lora import Linear as LoraOverDense
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as LoraOver4Bit
from torch import nn

from worker.training.fast.group import ADAPTER, Group
from worker.training.fast.weights import BITSANDBYTES, Unpacking

# Layers that every known family calls with one and the same input, in this order.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class FastLinears:
    """The LoRA function in a model."""

    def __init__(self, model: PeftModel, dtype: torch.dtype, unpacking: Unpacking = BITSANDBYTES) -> None:
        """`dtype`: of the products of base and adapters, which must be one."""
        self._dtype = dtype
        self._groups: list[Group] = []
        self._forwards: list[tuple[LoraLayer, Callable[..., torch.Tensor]]] = []
        self._group_of: dict[nn.Module, Group] = {}
        self._hook = model.register_forward_pre_hook(self._begin_pass)
        for layers in find_groups(model):
            group = Group(layers, dtype, unpacking)
            self._groups.append(group)
            for place, layer in enumerate(layers):
                self._forwards.append((layer, _make_forward(layer, group, place)))
                self._group_of[layer] = group
        self.layers = len(self._forwards)
        self._put_in()

    @property
    def unpacked_bytes(self) -> int:
        """What it would take to keep all 4-bit weights unpacked."""
        return sum(group.unpacked_bytes for group in self._groups)

    def keep_weights(self) -> None:
        """Unpack every weight once, and not in every pass."""
        for group in self._groups:
            group.keep_weights()

    def forget_weights(self) -> bool:
        """Give that memory back; whether there was any."""
        were_kept = [group.forget_weights() for group in self._groups]
        return any(were_kept)

    def room_before(self, *layers: nn.Module) -> int:
        """How many elements these layers' one input should have free behind each row; 0: none."""
        groups = [group for layer in layers if (group := self._group_in_use(layer))]
        return groups[0].room if groups else 0

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
        if copies:
            # All in one launch: kernels of their own for so many small matrices would take longer than them.
            torch._foreach_copy_([to for to, _from in copies], [origin for _to, origin in copies])

    def _group_in_use(self, layer: nn.Module) -> Group | None:
        return self._group_of.get(layer) if "forward" in vars(layer) else None

    def _put_in(self) -> None:
        for layer, forward in self._forwards:
            vars(layer)["forward"] = forward

    def _take_out(self) -> None:
        for layer, _forward in self._forwards:
            vars(layer).pop("forward", None)


def find_groups(model: nn.Module) -> list[list[LoraLayer]]:
    """The layers that the function can stand in for, those with one input together."""
    found: list[list[LoraLayer]] = []
    for parent in model.modules():
        children = {name: child for name, child in parent.named_children() if is_plain(child)}
        for names in _SIBLINGS:
            siblings = [children.pop(name) for name in names if name in children]
            if siblings:
                found.append(siblings)
        found += [[child] for child in children.values()]
    return found


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


def _make_forward(layer: LoraLayer, group: Group, place: int) -> Callable[..., torch.Tensor]:
    plain = type(layer).forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not group.takes(x):
            output: torch.Tensor = plain(layer, x, *args, **kwargs)
            summand = group.take_summand()
            return output if summand is None else summand + output
        return group.output(place, x)

    return forward
