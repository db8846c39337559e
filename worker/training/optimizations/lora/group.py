"""LoRA layers of a PeftModel that read one input, computed by one call of the LoRA function.

T: tokens. I: inputs. O: outputs of a layer. R: the rank of a layer. S: of all together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from worker.models.frozen_weights import (
    BITSANDBYTES,
    AdapterColumns,
    DenseWeight,
    Dequantizers,
    FourBitWeight,
    weight_of,
)
from worker.training.optimizations.lora.function import lora_linears
from worker.training.optimizations.lora.layers import Adapters, LoraLinearSpec, LowRankMatmul

ADAPTER = "default"
# With more columns, the longer product takes more time than it saves.
_MAX_PADDING = 256
# Rows of 16-bit numbers must begin at multiples of 16 bytes.
_PADDING_MULTIPLE = 8


@dataclass(frozen=True)
class LoraKernels:
    """Kernels of the LoRA function. `low_rank`: None for PyTorch's products."""

    dequantizers: Dequantizers
    low_rank: LowRankMatmul | None


LIBRARY_KERNELS = LoraKernels(BITSANDBYTES, None)


@dataclass(frozen=True)
class _Member:
    """One layer of a group. `first_column`: where its products with A begin among those of the group."""

    layer: LoraLayer
    weight: FourBitWeight | DenseWeight
    a_RI: nn.Parameter
    b_OR: nn.Parameter
    first_column: int


@dataclass(frozen=True)
class _Pending:
    """Outputs that the first layer of a group has computed for the others, by place in the group."""

    x: torch.Tensor
    outputs: dict[int, torch.Tensor]


class LoraLayerGroup:
    """LoRA layers that are called in turn with one input; the call of the first computes all outputs."""

    def __init__(
        self,
        layers: Sequence[LoraLayer],
        dtype: torch.dtype,
        kernels: LoraKernels,
    ) -> None:
        self._dtype = dtype
        self._low_rank = kernels.low_rank
        matrices_a = [layer.lora_A[ADAPTER].weight for layer in layers]
        *first_columns, self._columns = accumulate((len(a_RI) for a_RI in matrices_a), initial=0)
        self._members = [
            _Member(
                layer,
                weight_of(layer.get_base_layer(), kernels.dequantizers),
                a_RI,
                layer.lora_B[ADAPTER].weight,
                first_column,
            )
            for layer, a_RI, first_column in zip(layers, matrices_a, first_columns, strict=True)
        ]
        self._adapters: Adapters | None = None
        self._pending: _Pending | None = None
        self._summand: torch.Tensor | None = None
        # Whether inputs and gradients of the output have padding columns: cached weights need them, too.
        self._input_is_padded = self._grad_is_padded = False

    @property
    def layers(self) -> list[LoraLayer]:
        """The layers in the order of their calls."""
        return [member.layer for member in self._members]

    def input_padding(self) -> int:
        """How many padding columns the next input should have, for the products with A; 0: none.

        There are none under dropout, since PyTorch draws other masks for strided rows than for PEFT's.
        """
        self._input_is_padded = self._accepts_padding() and not self._is_cached_without("columns")
        return self._columns if self._input_is_padded else 0

    def output_grad_padding(self) -> int:
        """How many padding columns the output's gradient should have, for a layer that is alone; 0: none."""
        is_alone = len(self._members) == 1
        self._grad_is_padded = is_alone and self._accepts_padding() and not self._is_cached_without("rows")
        return self._columns if self._grad_is_padded else 0

    @property
    def dequantized_bytes(self) -> int:
        """Bytes that caching all 4-bit weights dequantized takes."""
        rows, columns = self._cached_padding()
        elements = (
            (weight.outputs + rows) * (weight.inputs + columns)
            for _member, weight in self._four_bit_members()
        )
        return sum(elements) * self._dtype.itemsize

    def cache_dequantized(self) -> None:
        """Cache all 4-bit weights dequantized, in place of dequantizing them in every pass."""
        rows, columns = self._cached_padding()
        for _member, weight in self._four_bit_members():
            weight.cache(self._dtype, rows=rows, columns=columns)

    def drop_dequantized(self) -> bool:
        """Free the cached weights. Returns whether there were any."""
        were_cached = [weight.drop_cache() for _member, weight in self._four_bit_members()]
        return any(were_cached)

    def begin_pass(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Drop the state of the last pass. Returns the copies to make before this one: (to, from)."""
        self._pending = self._summand = None
        if self._adapters is None:
            self._adapters = self._empty_adapters()
        matrices_a = self._adapters.a_SI.split(self._adapters.ranks)
        copies = []
        for member, a_RI, b_OR in zip(self._members, matrices_a, self._adapters.b_OR, strict=True):
            copies += [(a_RI, member.a_RI.detach()), (b_OR, member.b_OR.detach())]
        for member, weight in self._four_bit_members():
            if (columns := weight.cached_b(member.first_column, member.b_OR.shape[1])) is not None:
                copies.append((columns, member.b_OR.detach()))
            if (rows := weight.cached_a()) is not None:
                copies.append((rows, member.a_RI.detach()))
        return copies

    def add_next(self, summand: torch.Tensor) -> bool:
        """Add `summand` to the next output. Returns False, and adds nothing, where the layer is not alone."""
        if len(self._members) > 1:
            return False
        self._summand = summand
        return True

    def take_summand(self) -> torch.Tensor | None:
        """Return and remove the summand of the present output."""
        summand, self._summand = self._summand, None
        return summand

    def output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """The output of the layer at this place of the group."""
        if self._pending is not None and self._pending.x is x and place in self._pending.outputs:
            output = self._pending.outputs.pop(place)
            if not self._pending.outputs:
                self._pending = None
            return output
        outputs = dict(enumerate(self._compute(x)))
        output = outputs.pop(place)
        self._pending = _Pending(x, outputs) if outputs else None
        return output

    def supports(self, x: torch.Tensor) -> bool:
        """Whether the function supports a call: base and adapters compute in one type, adapters are on."""
        return self._takes_calls(x.device.type)

    def _takes_calls(self, device: str) -> bool:
        is_mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_mixed else self._members[0].a_RI.dtype
        return (
            dtype == self._dtype
            and self._adapters is not None
            and not any(member.layer.disable_adapters or member.layer.merged for member in self._members)
        )

    def _compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        adapters = self._adapters
        assert adapters is not None
        layers = [
            self._describe(member, adapters.a_SI, b_OR)
            for member, b_OR in zip(self._members, adapters.b_OR, strict=True)
        ]
        summand = self.take_summand()
        is_fused = (
            summand is not None and summand.dtype is self._dtype is x.dtype and layers[0].bias_O is None
        )
        parameters = [matrix for member in self._members for matrix in (member.a_RI, member.b_OR)]
        outputs = lora_linears(
            x.to(self._dtype), layers, adapters, parameters, summand if is_fused else None, self._low_rank
        )
        cast = [y.to(x.dtype) for y in outputs]
        return cast if summand is None or is_fused else [summand + cast[0]]

    def _describe(self, member: _Member, a_SI: torch.Tensor, b_OR: torch.Tensor) -> LoraLinearSpec:
        layer, weight = member.layer, member.weight
        read_with_b = read_with_a = None
        if isinstance(weight, FourBitWeight) and weight.can_append_adapter:
            columns = AdapterColumns(b_OR, member.first_column, self._columns)
            read_with_b, read_with_a = partial(weight.read_with_b, columns), partial(weight.read_with_a, a_SI)
        bias_O = layer.get_base_layer().bias
        return LoraLinearSpec(
            weight,
            None if bias_O is None else bias_O.detach().to(self._dtype),
            layer.scaling[ADAPTER],
            _dropout_of(layer),
            read_with_b,
            read_with_a,
        )

    def _accepts_padding(self) -> bool:
        return (
            self._columns <= _MAX_PADDING
            and self._columns % _PADDING_MULTIPLE == 0
            and self._takes_calls(self._members[0].a_RI.device.type)
            and all(
                member.weight.can_append_adapter and not _dropout_of(member.layer) for member in self._members
            )
        )

    def _cached_padding(self) -> tuple[int, int]:
        """(rows below, columns to the right) of cached weights; none where training has dropout, whose inputs
        are padded in evaluations only."""
        if any(_dropout_of(member.layer, in_training=True) for member in self._members):
            return 0, 0
        return self._columns * self._grad_is_padded, self._columns * self._input_is_padded

    def _is_cached_without(self, part: Literal["rows", "columns"]) -> bool:
        return any(weight.is_cached_without(part) for _member, weight in self._four_bit_members())

    def _four_bit_members(self) -> Iterator[tuple[_Member, FourBitWeight]]:
        for member in self._members:
            if isinstance(member.weight, FourBitWeight):
                yield member, member.weight

    def _empty_adapters(self) -> Adapters:
        matrices_a = [member.a_RI for member in self._members]
        a_SI = matrices_a[0].new_empty(self._columns, matrices_a[0].shape[1], dtype=self._dtype)
        return Adapters(
            a_SI, tuple(torch.empty_like(member.b_OR, dtype=self._dtype) for member in self._members)
        )


def _dropout_of(layer: LoraLayer, *, in_training: bool | None = None) -> float:
    """The layer's dropout in a training pass or in another one; None: in its present mode."""
    dropout = layer.lora_dropout[ADAPTER]
    is_training = dropout.training if in_training is None else in_training
    return dropout.p if isinstance(dropout, nn.Dropout) and is_training else 0.0
