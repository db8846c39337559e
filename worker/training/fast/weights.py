"""Frozen weights of linear layers, packed in 4 bits or not. Knows no adapter, but for the place of its B.

I: inputs. O: outputs. R: the rank. S: the ranks of all layers that read one input.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    """How packed bytes and their state become a weight [O, I] in the type that the state names. `beside`:
    one with B behind it, [O, I + S]; None: it can't be had so."""

    alone: Callable[[torch.Tensor, QuantState], torch.Tensor]
    beside: Callable[[torch.Tensor, QuantState, Columns], torch.Tensor] | None = None


BITSANDBYTES = Unpacking(dequantize_4bit)


class FourBitWeight:
    """Unpacked each time it is read: the largest saving of QLoRA is that it is not kept. Unless there is
    memory to spare."""

    def __init__(self, linear: Linear4bit, unpacking: Unpacking) -> None:
        self._linear = linear
        self._unpacking = unpacking
        self._kept: torch.Tensor | None = None  # [O, I + S]

    @property
    def outputs(self) -> int:
        """O."""
        return self._linear.out_features

    @property
    def inputs(self) -> int:
        """I."""
        return self._linear.in_features

    @property
    def takes_columns(self) -> bool:
        """Whether it can be read with B behind it."""
        blocksize = self._linear.weight.quant_state.blocksize
        return self._unpacking.beside is not None and self.inputs % blocksize == 0

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        if self._kept is not None:
            return self._kept[:, : self.inputs]
        weight = self._linear.weight
        return self._unpacking.alone(weight.data, weight.quant_state).to(dtype)

    def read_beside(self, columns: Columns, dtype: torch.dtype) -> torch.Tensor:
        """The weight with B behind it, [O, I + S]. Of one that is kept B must have been copied there."""
        if self._kept is not None:
            return self._kept
        assert self._unpacking.beside is not None
        weight = self._linear.weight
        return self._unpacking.beside(weight.data, weight.quant_state, columns).to(dtype)

    def keep(self, dtype: torch.dtype, room: int) -> None:
        """From now on read what is unpacked here, with so many columns behind it."""
        weight_OI = self.read(dtype)
        self._kept = weight_OI.new_zeros(self.outputs, self.inputs + room)
        self._kept[:, : self.inputs] = weight_OI

    def kept_columns(self, first: int, rank: int) -> torch.Tensor | None:
        """Where B [O, R] lies behind a weight that is kept; None: nowhere."""
        if self._kept is None or self._kept.shape[1] == self.inputs:
            return None
        return self._kept[:, self.inputs + first : self.inputs + first + rank]

    def forget(self) -> bool:
        """From now on unpack again; whether it was kept."""
        was_kept, self._kept = self._kept is not None, None
        return was_kept


class DenseWeight:
    """A weight of the model's own type."""

    takes_columns = False  # it would have to be copied

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        return self._linear.weight.detach().to(dtype)


def weight_of(linear: nn.Linear, unpacking: Unpacking) -> FourBitWeight | DenseWeight:
    """As the layer holds it."""
    return FourBitWeight(linear, unpacking) if isinstance(linear, Linear4bit) else DenseWeight(linear)
