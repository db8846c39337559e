"""A base model's linear layers, those with the same input done as one product; LoRA is added on the way.

The model's own modules stay where they are: their `forward` asks here. Weights of layers that belong together
lie in one tensor, and each module's own weight is a view of its part.
Shape letters: N tokens, I inputs, O outputs of all layers of a group.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

# Layers that every known family calls with one and the same input.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Update(Protocol):
    """What LoRA adds to a group's outputs. It begins before the group's own product and may run beside it."""

    def begin(self, x_NI: torch.Tensor) -> object: ...
    def finish(self, y_NO: torch.Tensor, begun: object) -> None: ...


Product = Callable[[torch.Tensor], torch.Tensor]


class Group:
    """Linear layers with one input. The first one called computes for all; the others fetch their part."""

    def __init__(self, names: list[str], linears: list[nn.Linear], product: Product) -> None:
        self.names = names
        self.linears = linears
        self.update: Update | None = None
        self._product = product
        self._widths = [linear.out_features for linear in linears]
        self._input: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}
        for index, linear in enumerate(linears):
            linear.forward = _Part(self, index)  # type: ignore[assignment, method-assign]

    @property
    def inputs(self) -> int:
        """Width of the input."""
        return self.linears[0].in_features

    @property
    def widths(self) -> list[int]:
        """Width of each layer's output."""
        return self._widths

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """One layer's output for this input."""
        if self._input is not x or index not in self._parts:
            y_NO = self._outputs(x.reshape(-1, x.shape[-1]))
            self._parts = dict(enumerate(y_NO.view(*x.shape[:-1], -1).split(self._widths, -1)))
            self._input = x
        part = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return part

    def _outputs(self, x_NI: torch.Tensor) -> torch.Tensor:
        if self.update is None:
            return self._product(x_NI)
        begun = self.update.begin(x_NI)
        y_NO = self._product(x_NI)
        self.update.finish(y_NO, begun)
        return y_NO


class _Part:
    """Stands in for the `forward` of one layer of a group."""

    def __init__(self, group: Group, index: int) -> None:
        self._group = group
        self._index = index

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._group.part(self._index, x)


def group_linears(model: nn.Module) -> list[Group]:
    """Take over every linear layer of a model, siblings together."""
    groups: list[Group] = []
    taken: set[str] = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if name in taken or not isinstance(module, nn.Linear):
            continue
        names = _with_siblings(name, modules)
        taken.update(names)
        linears = [found for one in names if isinstance(found := modules[one], nn.Linear)]
        groups.append(Group(names, linears, _packed(linears)))
    return groups


def _with_siblings(name: str, modules: dict[str, nn.Module]) -> list[str]:
    parent, _, own = name.rpartition(".")
    for siblings in _SIBLINGS:
        names = [f"{parent}.{sibling}" for sibling in siblings]
        if own in siblings and all(_go_together(modules[name], modules.get(other)) for other in names):
            return names
    return [name]


def _go_together(first: nn.Module, second: nn.Module | None) -> bool:
    return (
        isinstance(first, nn.Linear)
        and type(first) is type(second)
        and isinstance(second, nn.Linear)
        and first.in_features == second.in_features
        and first.weight.dtype == second.weight.dtype
        and (first.bias is None) == (second.bias is None)
    )


def _packed(linears: list[nn.Linear]) -> Product:
    """The product of all of them as one, with their weights moved into one tensor."""
    if len(linears) == 1:
        (linear,) = linears
        # Read at each call: an output layer may share its weight with the embedding.
        return lambda x_NI: functional.linear(x_NI, linear.weight, linear.bias)
    weight_OI = torch.cat([linear.weight.data for linear in linears])
    bias_O = torch.cat([linear.bias.data for linear in linears]) if linears[0].bias is not None else None
    widths = [linear.out_features for linear in linears]
    for linear, part_OI in zip(linears, weight_OI.split(widths), strict=True):
        linear.weight.data = part_OI
    return lambda x_NI: functional.linear(x_NI, weight_OI, bias_O)
