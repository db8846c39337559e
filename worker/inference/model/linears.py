"""The linear layers of a base model: those that read the same input are computed as one matrix product.

The model's modules stay in place, with another `forward`. The weights of a group of layers are one tensor, to
which rows can be appended: the A matrices of LoRA adapters, which are then part of the same product. What
the rows hold, and LoRA itself, the caller adds.
Shape letters: N tokens, I inputs, O outputs of all layers of a group, C appended rows.
"""

from typing import Protocol

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn import functional

from worker.models.linear_groups import group_by_input


class MergedWeights(Protocol):
    """The weights of a group of layers [O, I], and rows [C, I] appended to them, which the caller fills."""

    def product(self, x_NI: torch.Tensor) -> torch.Tensor: ...
    def append_rows(self, count: int) -> torch.Tensor: ...
    def product_with_rows(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...
    def use_kernels(self) -> None: ...


class ProductWithLora(Protocol):
    """Computes the outputs [N, O] of a group in place of `MergedWeights.product`, with what LoRA adds."""

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor: ...


class MergedDenseWeights:
    """Weights in the model's own type."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        self._linears = linears
        self._uses_kernels = False
        self._outputs = sum(linear.out_features for linear in linears)
        # A single layer keeps its tensor, which an output layer may share with the embedding.
        self._weight_OI = linears[0].weight.data if len(linears) == 1 else self._allocate(0)
        self._bias_O = _joined_bias(linears)

    def product(self, x_NI: torch.Tensor) -> torch.Tensor:
        """The outputs [N, O] of all layers, side by side."""
        bias_O = self._bias_O[: self._outputs] if self._bias_O is not None else None
        return self._linear(x_NI, self._weight_OI[: self._outputs], bias_O)

    def append_rows(self, count: int) -> torch.Tensor:
        """Append `count` rows of zeros [count, I] in place of those before, and return them."""
        self._weight_OI = self._allocate(count)
        if self._bias_O is not None:
            self._bias_O = functional.pad(self._bias_O[: self._outputs], (0, count))
        return self._weight_OI[self._outputs :]

    def product_with_rows(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [N, O], and x times the appended rows [N, C]; views of one tensor."""
        both = self._linear(x_NI, self._weight_OI, self._bias_O)
        return both[:, : self._outputs], both[:, self._outputs :]

    def use_kernels(self) -> None:
        """Compute the product of a single token by a kernel, which is faster than the general product."""
        self._uses_kernels = True

    def _linear(
        self, x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        if not self._uses_kernels or len(x_NI) > 1:
            return functional.linear(x_NI, weight_OI, bias_O)
        from worker.kernels import matrix_vector

        return matrix_vector.product(x_NI, weight_OI, bias_O)

    def _allocate(self, row_count: int) -> torch.Tensor:
        """Copy all weights into one new tensor, with rows of zeros below; modules get views of it."""
        widths = [linear.out_features for linear in self._linears]
        first = self._linears[0].weight
        weight_OI = first.new_zeros(
            self._outputs + row_count, self._linears[0].in_features, requires_grad=False
        )
        for linear, part_OI in zip(self._linears, weight_OI[: self._outputs].split(widths), strict=True):
            linear.weight.data = part_OI.copy_(linear.weight.data)
        return weight_OI


class MergedFourBitWeights:
    """4-bit weights, whose packed bytes are concatenated: no block of values spans two layers."""

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
        self._rows_CI: torch.Tensor | None = None
        for linear in linears:
            # The module's own copy is freed; its new `forward` does not read it.
            linear.weight.data = linear.weight.data.new_empty(0)

    def product(self, x_NI: torch.Tensor) -> torch.Tensor:
        """The outputs [N, O] of all layers, side by side."""
        return bnb.matmul_4bit(x_NI, self._packed.t(), quant_state=self._state, bias=self._bias_O)

    def append_rows(self, count: int) -> torch.Tensor:
        """Allocate `count` rows of zeros, a tensor of their own in the dtype of the inputs, and return it."""
        self._rows_CI = self._packed.new_zeros(count, self._state.shape[1], dtype=self._state.dtype)
        return self._rows_CI

    def use_kernels(self) -> None:
        """Nothing changes: bitsandbytes' own kernels are used in any case."""

    def product_with_rows(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [N, O], and x times the appended rows [N, C]."""
        assert self._rows_CI is not None
        return self.product(x_NI), functional.linear(x_NI, self._rows_CI)


class MergedLinears:
    """Linear layers with one input. The call of the first computes all outputs; the others return theirs.

    `update`, where it is set, computes the outputs in place of the product.
    """

    def __init__(self, names: list[str], linears: list[nn.Linear]) -> None:
        self.names = names
        self.widths = [linear.out_features for linear in linears]
        self.input_width = linears[0].in_features
        self.device = linears[0].weight.device
        self.weights = _weights(linears)
        self.update: ProductWithLora | None = None
        self._input: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}
        for index, linear in enumerate(linears):
            linear.forward = _Part(self, index)  # type: ignore[assignment, method-assign]

    def shape_of(self, name: str) -> tuple[int, int]:
        """The number of outputs and of inputs of a layer."""
        return self.widths[self.names.index(name)], self.input_width

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The output [..., outputs] of the layer at `index` of the group for an input [..., I]."""
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
    """Replaces the `forward` of one layer of a group."""

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
        can_merge = all(_can_merge(linears[names[0]], linears[name]) for name in names)
        groups += [names] if can_merge else [[name] for name in names]
    return [MergedLinears(names, [linears[name] for name in names]) for names in groups]


def _can_merge(first: nn.Linear, second: nn.Linear) -> bool:
    return (
        type(first) is type(second)
        and first.in_features == second.in_features
        and first.weight.dtype == second.weight.dtype
        and (first.bias is None) == (second.bias is None)
    )


def _weights(linears: list[nn.Linear]) -> MergedWeights:
    four_bit = [linear for linear in linears if isinstance(linear, Linear4bit)]
    return MergedFourBitWeights(four_bit) if four_bit else MergedDenseWeights(linears)


def _joined_bias(linears: list[nn.Linear] | list[Linear4bit]) -> torch.Tensor | None:
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return torch.cat(biases) if biases else None


def _absmax(state: QuantState) -> torch.Tensor:
    """The largest value of each block, dequantized from 8 bits where it is itself quantized."""
    if not state.nested:
        return state.absmax
    return bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
