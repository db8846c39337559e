"""A base model's linear layers, those with the same input done as one product; LoRA is added on the way.

The model's own modules stay where they are: their `forward` asks here. Weights of layers that belong together
lie in one tensor. Below them there may be room for more lines: the first matrices of LoRA adapters, which
then come with the same product.
Shape letters: N tokens, I inputs, O outputs of all layers of a group, C lines of the tail.
"""

from typing import Protocol

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn import functional

from worker.models.linear_groups import group_by_input


class Weights(Protocol):
    """The weights of a group, and a tail of lines that others write."""

    def product(self, x_NI: torch.Tensor) -> torch.Tensor: ...
    def reserve(self, lines: int) -> torch.Tensor: ...
    def product_and_tail(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...
    def use_kernels(self) -> None: ...


class Update(Protocol):
    """Stands in for the product of a group, to add something to it."""

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor: ...


class DenseWeights:
    """Weights as they are."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        self._linears = linears
        self._uses_kernels = False
        self._outputs = sum(linear.out_features for linear in linears)
        # One layer alone keeps its tensor: an output layer may share it with the embedding.
        self._weight_OI = linears[0].weight.data if len(linears) == 1 else self._with_room(0)
        self._bias_O = _joined_bias(linears)

    def product(self, x_NI: torch.Tensor) -> torch.Tensor:
        """The outputs of all layers, side by side."""
        bias_O = self._bias_O[: self._outputs] if self._bias_O is not None else None
        return self._linear(x_NI, self._weight_OI[: self._outputs], bias_O)

    def reserve(self, lines: int) -> torch.Tensor:
        """Make room for so many lines and answer it, [lines, I]; what was in the tail before is gone."""
        self._weight_OI = self._with_room(lines)
        if self._bias_O is not None:
            self._bias_O = functional.pad(self._bias_O[: self._outputs], (0, lines))
        return self._weight_OI[self._outputs :]

    def product_and_tail(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [N, O], and x times the lines of the tail [N, C]; views of one tensor."""
        both = self._linear(x_NI, self._weight_OI, self._bias_O)
        return both[:, : self._outputs], both[:, self._outputs :]

    def use_kernels(self) -> None:
        """One token alone goes through a kernel that is faster than the general product."""
        self._uses_kernels = True

    def _linear(
        self, x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        if not self._uses_kernels or len(x_NI) > 1:
            return functional.linear(x_NI, weight_OI, bias_O)
        from worker.kernels import matrix_vector

        return matrix_vector.product(x_NI, weight_OI, bias_O)

    def _with_room(self, lines: int) -> torch.Tensor:
        """All weights in one tensor, of which each module's own is a view."""
        widths = [linear.out_features for linear in self._linears]
        first = self._linears[0].weight
        weight_OI = first.new_zeros(self._outputs + lines, self._linears[0].in_features, requires_grad=False)
        for linear, part_OI in zip(self._linears, weight_OI[: self._outputs].split(widths), strict=True):
            linear.weight.data = part_OI.copy_(linear.weight.data)
        return weight_OI


class FourBitWeights:
    """Weights in 4 bits, put together bit by bit: blocks of values never cross a line of the weight."""

    def __init__(self, linears: list[Linear4bit]) -> None:
        states = [linear.weight.quant_state for linear in linears]
        first = states[0]
        self._packed = torch.cat([linear.weight.data.view(-1) for linear in linears])[:, None]
        outputs = sum(linear.out_features for linear in linears)
        self._state = QuantState(
            absmax=torch.cat([_absmax(state) for state in states]),
            shape=torch.Size((outputs, linears[0].in_features)),
            code=first.code,
            blocksize=first.blocksize,
            quant_type=first.quant_type,
            dtype=first.dtype,
        )
        self._bias_O = _joined_bias(linears)
        self._tail_CI: torch.Tensor | None = None
        for linear in linears:
            # The module's own copy; `forward` no longer looks at it.
            linear.weight.data = linear.weight.data.new_empty(0)

    def product(self, x_NI: torch.Tensor) -> torch.Tensor:
        """The outputs of all layers, side by side."""
        return bnb.matmul_4bit(x_NI, self._packed.t(), quant_state=self._state, bias=self._bias_O)

    def reserve(self, lines: int) -> torch.Tensor:
        """A tail of its own, in the dtype of the inputs."""
        self._tail_CI = self._packed.new_zeros(lines, self._state.shape[1], dtype=self._state.dtype)
        return self._tail_CI

    def use_kernels(self) -> None:
        """Those of bitsandbytes are used in any case."""

    def product_and_tail(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [N, O], and x times the lines of the tail [N, C]."""
        assert self._tail_CI is not None
        return self.product(x_NI), functional.linear(x_NI, self._tail_CI)


class MergedLinears:
    """Linear layers with one input. The first one called computes for all; the others fetch their part."""

    def __init__(self, names: list[str], linears: list[nn.Linear]) -> None:
        self.names = names
        self.widths = [linear.out_features for linear in linears]
        self.input_width = linears[0].in_features
        self.device = linears[0].weight.device
        self.weights = _weights(linears)
        self.update: Update | None = None
        self._input: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}
        for index, linear in enumerate(linears):
            linear.forward = _Part(self, index)  # type: ignore[assignment, method-assign]

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """One layer's output for this input."""
        if self._input is not x or index not in self._parts:
            x_NI = x.reshape(-1, x.shape[-1])
            y_NO = self.weights.product(x_NI) if self.update is None else self.update(x_NI)
            self._parts = dict(enumerate(y_NO.view(*x.shape[:-1], -1).split(self.widths, -1)))
            self._input = x
        part = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return part


class _Part:
    """Stands in for the `forward` of one layer of a group."""

    def __init__(self, group: MergedLinears, index: int) -> None:
        self._group = group
        self._index = index

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._group.part(self._index, x)


def merge_linears(model: nn.Module) -> list[MergedLinears]:
    """Replace the `forward` of every linear layer of a model; layers with the same input are merged."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    groups: list[list[str]] = []
    for names in group_by_input(linears):
        together = all(_go_together(linears[names[0]], linears[name]) for name in names)
        groups += [names] if together else [[name] for name in names]
    return [MergedLinears(names, [linears[name] for name in names]) for names in groups]


def _go_together(first: nn.Linear, second: nn.Linear) -> bool:
    return (
        type(first) is type(second)
        and first.in_features == second.in_features
        and first.weight.dtype == second.weight.dtype
        and (first.bias is None) == (second.bias is None)
    )


def _weights(linears: list[nn.Linear]) -> Weights:
    four_bit = [linear for linear in linears if isinstance(linear, Linear4bit)]
    return FourBitWeights(four_bit) if four_bit else DenseWeights(linears)


def _joined_bias(linears: list[nn.Linear] | list[Linear4bit]) -> torch.Tensor | None:
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return torch.cat(biases) if biases else None


def _absmax(state: QuantState) -> torch.Tensor:
    """The largest value of each block, itself put back from 8 bits where it was quantized twice."""
    if not state.nested:
        return state.absmax
    return bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
