"""Frozen weights of linear layers, packed in 4 bits or not. Knows of adapters only where they lie beside.

I: inputs. O: outputs. R: the rank. S: the ranks of all layers that read one input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn


@dataclass(frozen=True)
class Columns:
    """B [O, R] among the S columns behind a weight, of which it takes R from `first` on. The others are 0."""

    b_OR: torch.Tensor
    first: int
    count: int


@dataclass(frozen=True)
class Unpacking:
    """How packed bytes and their state become a weight [O, I] in the type that the state names. `beside`: one
    with B behind it, [O, I + S]. `above`: one with A [S, I] below it. None: it can't be had so."""

    alone: Callable[[torch.Tensor, QuantState], torch.Tensor]
    beside: Callable[[torch.Tensor, QuantState, Columns], torch.Tensor] | None = None
    above: Callable[[torch.Tensor, QuantState, torch.Tensor], torch.Tensor] | None = None


BITSANDBYTES = Unpacking(dequantize_4bit)


class FourBitWeight:
    """Unpacked each time it is read: the largest saving of QLoRA is that it is not kept. Unless there is
    memory to spare."""

    def __init__(self, linear: Linear4bit, unpacking: Unpacking) -> None:
        self._linear = linear
        self._unpacking = unpacking
        self._kept: torch.Tensor | None = None  # at most [O + S, I + S]

    @property
    def outputs(self) -> int:
        """O."""
        return self._linear.out_features

    @property
    def inputs(self) -> int:
        """I."""
        return self._linear.in_features

    @property
    def has_kernels(self) -> bool:
        """Whether it can be read with an adapter beside it."""
        blocksize = self._linear.weight.quant_state.blocksize
        return self._unpacking.beside is not None and self.inputs % blocksize == 0

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        if self._kept is not None:
            return self._kept[: self.outputs, : self.inputs]
        weight = self._linear.weight
        return self._unpacking.alone(weight.data, weight.quant_state).to(dtype)

    def read_beside(self, columns: Columns, dtype: torch.dtype) -> torch.Tensor:
        """The weight with B behind it, [O, I + S]. Where it is kept so, B must have been copied there."""
        if self._kept is not None and self._kept.shape[1] > self.inputs:
            return self._kept[: self.outputs]
        assert self._unpacking.beside is not None
        weight = self._linear.weight
        return self._unpacking.beside(weight.data, weight.quant_state, columns).to(dtype)

    def read_above(self, a_SI: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight with A below it, [O + S, I]. Where it is kept so, A must have been copied there."""
        if self._kept is not None and len(self._kept) > self.outputs:
            return self._kept[:, : self.inputs]
        assert self._unpacking.above is not None
        weight = self._linear.weight
        return self._unpacking.above(weight.data, weight.quant_state, a_SI).to(dtype)

    def keep(self, dtype: torch.dtype, *, rows: int = 0, columns: int = 0) -> None:
        """From now on read what is unpacked here, with so many rows below it and columns behind it."""
        weight_OI = self.read(dtype)
        self._kept = weight_OI.new_zeros(self.outputs + rows, self.inputs + columns)
        self._kept[: self.outputs, : self.inputs] = weight_OI

    def kept_columns(self, first: int, rank: int) -> torch.Tensor | None:
        """Where B [O, R] lies behind a weight that is kept; None: nowhere."""
        if self._kept is None or self._kept.shape[1] == self.inputs:
            return None
        return self._kept[: self.outputs, self.inputs + first : self.inputs + first + rank]

    def kept_rows(self) -> torch.Tensor | None:
        """Where A [S, I] lies below a weight that is kept; None: nowhere."""
        if self._kept is None or len(self._kept) == self.outputs:
            return None
        return self._kept[self.outputs :, : self.inputs]

    def is_kept_without(self, room: Literal["rows", "columns"]) -> bool:
        """Whether it is kept, but not with these below or behind it."""
        if self._kept is None:
            return False
        return len(self._kept) == self.outputs if room == "rows" else self._kept.shape[1] == self.inputs

    def forget(self) -> bool:
        """From now on unpack again; whether it was kept."""
        was_kept, self._kept = self._kept is not None, None
        return was_kept


class DenseWeight:
    """A weight of the model's own type."""

    has_kernels = False  # it would have to be copied

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        return self._linear.weight.detach().to(dtype)


def weight_of(linear: nn.Linear, unpacking: Unpacking) -> FourBitWeight | DenseWeight:
    """As the layer holds it."""
    return FourBitWeight(linear, unpacking) if isinstance(linear, Linear4bit) else DenseWeight(linear)
