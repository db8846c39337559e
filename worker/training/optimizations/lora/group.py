"""LoRA layers of a PeftModel that read one input, as the function of lora_linear.py wants them.

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
    Columns,
    DenseWeight,
    FourBitWeight,
    Unpacking,
    weight_of,
)
from worker.training.optimizations.lora.function import lora_linears
from worker.training.optimizations.lora.layers import Adapters, Layer, NarrowProducts

ADAPTER = "default"
# From about so many columns on a longer product takes more time than the short one it stands for.
_MOST_BESIDE = 256
# Rows of 16-bit numbers must begin at multiples of 16 bytes.
_BESIDE_MULTIPLE = 8


@dataclass(frozen=True)
class Kernels:
    """What weights are unpacked by, and products with B made by; None: PyTorch's."""

    unpacking: Unpacking
    narrow: NarrowProducts | None


LIBRARIES = Kernels(BITSANDBYTES, None)


@dataclass(frozen=True)
class _Member:
    """`first_column`: where its products with A begin among those of all."""

    layer: LoraLayer
    weight: FourBitWeight | DenseWeight
    a_RI: nn.Parameter
    b_OR: nn.Parameter
    first_column: int


@dataclass(frozen=True)
class _Pending:
    """What the first layer of a group has computed for the others."""

    x: torch.Tensor
    outputs: dict[int, torch.Tensor]


class LoraLayerGroup:
    """LoRA layers that are called one after the other with one input: the first computes for all."""

    def __init__(
        self,
        layers: Sequence[LoraLayer],
        dtype: torch.dtype,
        kernels: Kernels,
    ) -> None:
        self._dtype = dtype
        self._narrow = kernels.narrow
        matrices_a = [layer.lora_A[ADAPTER].weight for layer in layers]
        *first_columns, self._columns = accumulate((len(a_RI) for a_RI in matrices_a), initial=0)
        self._members = [
            _Member(
                layer,
                weight_of(layer.get_base_layer(), kernels.unpacking),
                a_RI,
                layer.lora_B[ADAPTER].weight,
                first_column,
            )
            for layer, a_RI, first_column in zip(layers, matrices_a, first_columns, strict=True)
        ]
        self._adapters: Adapters | None = None
        self._pending: _Pending | None = None
        self._summand: torch.Tensor | None = None
        # Whether inputs come with room, and gradients of the output: weights that are kept must have it too.
        self._lies_beside = self._lies_above = False

    @property
    def layers(self) -> list[LoraLayer]:
        """In the order in which they are called."""
        return [member.layer for member in self._members]

    def room_before(self) -> int:
        """How many elements should be free behind each row of the next input, for the products with A; 0:
        none.

        PyTorch draws other dropout masks for rows that lie apart than for PEFT's.
        """
        self._lies_beside = self._takes_room() and not self._is_kept_without("columns")
        return self._columns if self._lies_beside else 0

    def room_behind(self) -> int:
        """How many elements should be free behind each row of the output's gradient, where the layer is
        alone; 0: none."""
        is_alone = len(self._members) == 1
        self._lies_above = is_alone and self._takes_room() and not self._is_kept_without("rows")
        return self._columns if self._lies_above else 0

    @property
    def unpacked_bytes(self) -> int:
        """What it would take to keep all 4-bit weights unpacked."""
        rows, columns = self._kept_room()
        elements = (
            (weight.outputs + rows) * (weight.inputs + columns)
            for _member, weight in self._four_bit_members()
        )
        return sum(elements) * self._dtype.itemsize

    def keep_weights(self) -> None:
        """Unpack every 4-bit weight once, and not in every pass."""
        rows, columns = self._kept_room()
        for _member, weight in self._four_bit_members():
            weight.keep(self._dtype, rows=rows, columns=columns)

    def forget_weights(self) -> bool:
        """Give that memory back; whether there was any."""
        were_kept = [weight.forget() for _member, weight in self._four_bit_members()]
        return any(were_kept)

    def begin_pass(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Forget the last pass; answers what must be copied for this one: (to, from)."""
        self._pending = self._summand = None
        if self._adapters is None:
            self._adapters = self._empty_adapters()
        matrices_a = self._adapters.a_SI.split(self._adapters.ranks)
        copies = []
        for member, a_RI, b_OR in zip(self._members, matrices_a, self._adapters.b_OR, strict=True):
            copies += [(a_RI, member.a_RI.detach()), (b_OR, member.b_OR.detach())]
        for member, weight in self._four_bit_members():
            if (columns := weight.kept_columns(member.first_column, member.b_OR.shape[1])) is not None:
                copies.append((columns, member.b_OR.detach()))
            if (rows := weight.kept_rows()) is not None:
                copies.append((rows, member.a_RI.detach()))
        return copies

    def add_next(self, summand: torch.Tensor) -> bool:
        """Add this to the next output, where the layer is alone; False: it is not."""
        if len(self._members) > 1:
            return False
        self._summand = summand
        return True

    def take_summand(self) -> torch.Tensor | None:
        """What the present output shall have added."""
        summand, self._summand = self._summand, None
        return summand

    def output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """What the layer at this place of the group makes of the input."""
        if self._pending is not None and self._pending.x is x and place in self._pending.outputs:
            output = self._pending.outputs.pop(place)
            if not self._pending.outputs:
                self._pending = None
            return output
        outputs = dict(enumerate(self._compute(x)))
        output = outputs.pop(place)
        self._pending = _Pending(x, outputs) if outputs else None
        return output

    def takes(self, x: torch.Tensor) -> bool:
        """Whether base and adapters compute in one type here, as the function does."""
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
            x.to(self._dtype), layers, adapters, parameters, summand if is_fused else None, self._narrow
        )
        cast = [y.to(x.dtype) for y in outputs]
        return cast if summand is None or is_fused else [summand + cast[0]]

    def _describe(self, member: _Member, a_SI: torch.Tensor, b_OR: torch.Tensor) -> Layer:
        layer, weight = member.layer, member.weight
        read_beside = read_above = None
        if isinstance(weight, FourBitWeight) and weight.has_kernels:
            columns = Columns(b_OR, member.first_column, self._columns)
            read_beside, read_above = partial(weight.read_beside, columns), partial(weight.read_above, a_SI)
        bias_O = layer.get_base_layer().bias
        return Layer(
            weight,
            None if bias_O is None else bias_O.detach().to(self._dtype),
            layer.scaling[ADAPTER],
            _dropout_of(layer),
            read_beside,
            read_above,
        )

    def _takes_room(self) -> bool:
        return (
            self._columns <= _MOST_BESIDE
            and self._columns % _BESIDE_MULTIPLE == 0
            and self._takes_calls(self._members[0].a_RI.device.type)
            and all(member.weight.has_kernels and not _dropout_of(member.layer) for member in self._members)
        )

    def _kept_room(self) -> tuple[int, int]:
        """Rows below and columns behind a weight that is kept. An evaluation of a job with dropout asks for
        room, too, but its training never does."""
        if any(_dropout_of(member.layer, in_training=True) for member in self._members):
            return 0, 0
        return self._columns * self._lies_above, self._columns * self._lies_beside

    def _is_kept_without(self, room: Literal["rows", "columns"]) -> bool:
        return any(weight.is_kept_without(room) for _member, weight in self._four_bit_members())

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
    """Of a training pass or another one; None: of the present one."""
    dropout = layer.lora_dropout[ADAPTER]
    is_training = dropout.training if in_training is None else in_training
    return dropout.p if isinstance(dropout, nn.Dropout) and is_training else 0.0
