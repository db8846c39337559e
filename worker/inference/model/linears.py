"""The linear layers of a base model: those that read the same input are computed as one matrix product.

The weights of a group of layers are one tensor, to which rows can be appended: the A matrices of LoRA
adapters, which are then part of the same product. What the rows hold, and LoRA itself, the caller adds.
The modules compute what they did: their weights are views of the group's.
Shape letters: N tokens, I inputs, O outputs of all layers of a group, C appended rows.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn import functional

from worker.kernels.pending_lora import PendingLora
from worker.models.linear_groups import group_by_input

# Appended rows of the products that are computed to compile kernels, which are the same for any number.
_COMPILED_ROWS = 32


class MergedWeights(Protocol):
    """The weights of a group of layers [O, I], and rows [C, I] appended to them, which the caller fills."""

    def product(self, x_NI: torch.Tensor, plus_NO: torch.Tensor | None = None) -> torch.Tensor: ...
    def append_rows(self, count: int) -> torch.Tensor: ...
    def product_with_rows(self, x_NI: torch.Tensor, row_count: int) -> tuple[torch.Tensor, torch.Tensor]: ...
    def use_kernels(self, used: bool = True) -> None: ...
    def compile_kernels(self, count: int) -> None: ...


class ProductWithLora(Protocol):
    """Computes the outputs [N, O] of a group in place of `MergedWeights.product`, with what LoRA adds."""

    def __call__(self, x_NI: torch.Tensor, plus_NO: torch.Tensor | None = None) -> torch.Tensor: ...

    def begin(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, PendingLora | None]:
        """Return the outputs without what LoRA adds, and what is left of that; None where it adds nothing."""

    @property
    def is_idle(self) -> bool:
        """Whether no token of this pass has an adapter."""


class MergedDenseWeights:
    """Weights in the model's own type."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        self._linears = linears
        self._uses_kernels = False
        self._outputs = sum(linear.out_features for linear in linears)
        # A single layer keeps its tensor, which an output layer may share with the embedding.
        self._weight_OI = linears[0].weight.data if len(linears) == 1 else self._allocate(0)
        self._bias_O = _joined_bias(linears)

    def product(self, x_NI: torch.Tensor, plus_NO: torch.Tensor | None = None) -> torch.Tensor:
        """The outputs [N, O] of all layers, side by side, plus `plus_NO`."""
        return self._linear(x_NI, *self.plain(), plus_NO)

    def plain(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [O, I] of all layers, and their bias [O], without appended rows."""
        bias_O = self._bias_O[: self._outputs] if self._bias_O is not None else None
        return self._weight_OI[: self._outputs], bias_O

    def append_rows(self, count: int) -> torch.Tensor:
        """Append `count` rows of zeros [count, I] in place of those before, and return them."""
        self._weight_OI = self._allocate(count)
        if self._bias_O is not None:
            self._bias_O = functional.pad(self._bias_O[: self._outputs], (0, count))
        return self._weight_OI[self._outputs :]

    def product_with_rows(self, x_NI: torch.Tensor, row_count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [N, O], and x times the first C = `row_count` appended rows; views of one tensor."""
        end = self._outputs + row_count
        bias_O = self._bias_O[:end] if self._bias_O is not None else None
        both = self._linear(x_NI, self._weight_OI[:end], bias_O)
        return both[:, : self._outputs], both[:, self._outputs :]

    def use_kernels(self, used: bool = True) -> None:
        """Compute products of few tokens by kernels, which are faster than the general product."""
        self._uses_kernels = used

    def compile_kernels(self, count: int) -> None:
        """Compile what products of so many tokens need, by computing one, unless torch computes it."""
        from worker.kernels.serving import skinny_matmul

        weight_OI, _bias_O = self.plain()
        x_NI = weight_OI.new_zeros(count, weight_OI.shape[1])
        if count == 1 or skinny_matmul.can_multiply(x_NI, weight_OI):
            self.product(x_NI)

    def _linear(
        self,
        x_NI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        plus_NO: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self._uses_kernels:
            from worker.kernels.serving import matrix_vector, skinny_matmul

            if len(x_NI) == 1:
                return matrix_vector.product(x_NI, weight_OI, bias_O, plus_NO)
            if skinny_matmul.can_multiply(x_NI, weight_OI):
                return skinny_matmul.product(x_NI, weight_OI, bias_O, plus_NO)
        return _add(functional.linear(x_NI, weight_OI, bias_O), plus_NO)

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
        self._packed = _join_packed(linears)
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
        self._uses_kernels = False
        self._rows_CI: torch.Tensor | None = None

    def product(self, x_NI: torch.Tensor, plus_NO: torch.Tensor | None = None) -> torch.Tensor:
        """The outputs [N, O] of all layers, side by side, plus `plus_NO`."""
        if self._can_use_kernel(x_NI):
            return self._products_by_kernel(x_NI, plus_NO, None)[0]
        y_NO = bnb.matmul_4bit(x_NI, self._packed.t(), quant_state=self._state, bias=self._bias_O)
        return _add(y_NO, plus_NO)

    def append_rows(self, count: int) -> torch.Tensor:
        """Allocate `count` rows of zeros, a tensor of their own in the dtype of the inputs, and return it."""
        self._rows_CI = self._packed.new_zeros(count, self._state.shape[1], dtype=self._state.dtype)
        return self._rows_CI

    def product_with_rows(self, x_NI: torch.Tensor, row_count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [N, O], and x times the first C = `row_count` appended rows."""
        assert self._rows_CI is not None
        rows_CI = self._rows_CI[:row_count]
        if self._can_use_kernel(x_NI):
            return self._products_by_kernel(x_NI, None, rows_CI)
        return self.product(x_NI), functional.linear(x_NI, rows_CI)

    def use_kernels(self, used: bool = True) -> None:
        """Compute products of up to 64 tokens by a kernel, which is faster than bitsandbytes'."""
        self._uses_kernels = used

    def compile_kernels(self, count: int) -> None:
        """Compile what products of so many tokens need, with rows and without, by computing them."""
        from worker.kernels.serving.four_bit_matmul import MAX_TOKENS_WITH_ROWS

        x_NI = self._packed.new_zeros(count, self._state.shape[1], dtype=self._state.dtype)
        if self._can_use_kernel(x_NI):
            self._products_by_kernel(x_NI, None, None)
            if count <= MAX_TOKENS_WITH_ROWS:
                self._products_by_kernel(x_NI, None, x_NI[:1].expand(_COMPILED_ROWS, -1))

    def _can_use_kernel(self, x_NI: torch.Tensor) -> bool:
        if not self._uses_kernels or x_NI.dtype != self._state.dtype:
            return False
        from worker.kernels.serving.four_bit_matmul import MAX_TOKENS
        from worker.kernels.serving.four_bit_vector import BLOCK

        has_whole_blocks = self._state.blocksize == BLOCK and x_NI.shape[1] % BLOCK == 0
        return has_whole_blocks and len(x_NI) <= MAX_TOKENS

    def _products_by_kernel(
        self, x_NI: torch.Tensor, plus_NO: torch.Tensor | None, rows_CI: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from worker.kernels.serving import four_bit_matmul

        absmax, code = self._state.absmax, self._state.code
        return four_bit_matmul.products(x_NI, self._packed, absmax, code, self._bias_O, plus_NO, rows_CI)


class MergedLinears:
    """Linear layers with one input, whose outputs are computed together: a `Projection` of worker/decoder.

    `update`, where it is set, computes the outputs in place of the product.
    """

    def __init__(self, names: list[str], linears: list[nn.Linear]) -> None:
        self.names = names
        self.widths = [linear.out_features for linear in linears]
        self.input_width = linears[0].in_features
        self.device = linears[0].weight.device
        self.weights = _weights(linears)
        self.update: ProductWithLora | None = None

    def shape_of(self, name: str) -> tuple[int, int]:
        """The number of outputs and of inputs of a layer."""
        return self.widths[self.names.index(name)], self.input_width

    def product(self, x_NI: torch.Tensor, plus_NO: torch.Tensor | None = None) -> torch.Tensor:
        """The outputs [N, O] of all layers, side by side, with what adapters add, plus `plus_NO`."""
        compute = self.weights.product if self.update is None else self.update
        return compute(x_NI, plus_NO)

    def begin(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, PendingLora | None]:
        """The outputs [N, O] without what adapters add, and what is left to be added to them."""
        return (self.weights.product(x_NI), None) if self.update is None else self.update.begin(x_NI)

    def plain_weights(self) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """The weight [O, I] and the bias [O] that alone make the outputs of this pass.

        None where a token has an adapter, or the weights are not in the model's own type.
        """
        is_plain = self.update is None or self.update.is_idle
        return self.weights.plain() if is_plain and isinstance(self.weights, MergedDenseWeights) else None

    def input_padding(self) -> int:
        """No elements need to be free behind the rows of the input."""
        return 0

    def forward(
        self, x_TI: torch.Tensor, plus_TO: torch.Tensor | None = None, *, padding: int = 0
    ) -> tuple[list[torch.Tensor], None]:
        """Return the output of every layer; `plus_TO` is added to a single one."""
        return list(self.product(x_TI, plus_TO).split(self.widths, -1)), None

    def compute_alone(self, x: torch.Tensor) -> torch.Tensor:
        """The output [..., O] of the group's only layer for an input [..., I]."""
        return self.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def compile_products(groups: list[MergedLinears], counts: list[int]) -> None:
    """Compile the kernels of products of these numbers of tokens, several at once in threads.

    At a machine's first start there are dozens, and each takes seconds. What fails here is not raised: it
    fails again where it is needed.
    """
    by_inputs: dict[int, dict[int, MergedLinears]] = {}
    for group in groups:
        by_inputs.setdefault(group.input_width, {})[sum(group.widths)] = group
    with ThreadPoolExecutor(thread_name_prefix="compile") as threads:
        for alike in by_inputs.values():
            for count in counts:
                # In one thread, since weights with as many inputs may share kernels.
                threads.submit(_compile_products, list(alike.values()), count)


@torch.inference_mode()
def _compile_products(groups: list[MergedLinears], count: int) -> None:
    for group in groups:
        group.weights.compile_kernels(count)


def merge_linears(model: nn.Module) -> list[MergedLinears]:
    """Merge the weights of all linear layers with the same input."""
    linears = _linears_of(model)
    groups: list[list[str]] = []
    for names in group_by_input(linears):
        can_merge = all(_can_merge(linears[names[0]], linears[name]) for name in names)
        groups += [names] if can_merge else [[name] for name in names]
    return [MergedLinears(names, [linears[name] for name in names]) for names in groups]


def replace_forwards(model: nn.Module) -> list[MergedLinears]:
    """Replace the `forward` of every linear layer by that of a group of this layer alone, and return them."""
    groups = []
    for name, linear in _linears_of(model).items():
        groups.append(MergedLinears([name], [linear]))
        linear.forward = groups[-1].compute_alone  # type: ignore[method-assign, assignment]
    return groups


def _linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _can_merge(first: nn.Linear, second: nn.Linear) -> bool:
    return (
        type(first) is type(second)
        and first.in_features == second.in_features
        and first.weight.dtype == second.weight.dtype
        and (first.bias is None) == (second.bias is None)
    )


def _add(y_NO: torch.Tensor, plus_NO: torch.Tensor | None) -> torch.Tensor:
    return y_NO if plus_NO is None else plus_NO + y_NO


def _weights(linears: list[nn.Linear]) -> MergedWeights:
    four_bit = [linear for linear in linears if isinstance(linear, Linear4bit)]
    return MergedFourBitWeights(four_bit) if four_bit else MergedDenseWeights(linears)


def _join_packed(linears: list[Linear4bit]) -> torch.Tensor:
    """The packed weights of all layers in one tensor, of which the layers get views."""
    if len(linears) == 1:
        return linears[0].weight.data.view(-1, 1)
    parts = [linear.weight.data for linear in linears]
    packed = torch.cat([part.view(-1) for part in parts])
    for linear, part, own in zip(linears, parts, packed.split([part.numel() for part in parts]), strict=True):
        linear.weight.data = own.view(part.shape)
    return packed[:, None]


def _joined_bias(linears: list[nn.Linear] | list[Linear4bit]) -> torch.Tensor | None:
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return torch.cat(biases) if biases else None


def _absmax(state: QuantState) -> torch.Tensor:
    """The largest value of each block, dequantized from 8 bits where it is itself quantized."""
    if not state.nested:
        return state.absmax
    return bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
