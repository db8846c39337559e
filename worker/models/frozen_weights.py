"""Frozen weights of linear layers, 4-bit or not, read as matrices with or without an adapter appended.

Knows no module of a model and no autograd; what the appended columns and rows hold is the caller's.

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
class AdapterColumns:
    """`count` = S columns to the right of a weight: B [O, R] from column `first` on, zeros elsewhere."""

    b_OR: torch.Tensor
    first: int
    count: int


@dataclass(frozen=True)
class Dequantizers:
    """Functions from packed bytes and their state to a matrix in the type that the state names.

    `plain`: the weight [O, I]. `with_b`: the weight with B to its right, [O, I + S]. `with_a`: the weight
    with A below it, [O + S, I]. None: not supported.
    """

    plain: Callable[[torch.Tensor, QuantState], torch.Tensor]
    with_b: Callable[[torch.Tensor, QuantState, AdapterColumns], torch.Tensor] | None = None
    with_a: Callable[[torch.Tensor, QuantState, torch.Tensor], torch.Tensor] | None = None


BITSANDBYTES = Dequantizers(dequantize_4bit)


class FourBitWeight:
    """A 4-bit weight, dequantized at each read unless `cache()` was called."""

    def __init__(self, linear: Linear4bit, dequantizers: Dequantizers) -> None:
        self._linear = linear
        self._dequantizers = dequantizers
        self._cached: torch.Tensor | None = None  # at most [O + S, I + S]

    @property
    def outputs(self) -> int:
        """O."""
        return self._linear.out_features

    @property
    def inputs(self) -> int:
        """I."""
        return self._linear.in_features

    @property
    def can_append_adapter(self) -> bool:
        """Whether `read_with_b` and `read_with_a` are supported."""
        blocksize = self._linear.weight.quant_state.blocksize
        return self._dequantizers.with_b is not None and self.inputs % blocksize == 0

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        if self._cached is not None:
            return self._cached[: self.outputs, : self.inputs]
        weight = self._linear.weight
        return self._dequantizers.plain(weight.data, weight.quant_state).to(dtype)

    def read_with_b(self, columns: AdapterColumns, dtype: torch.dtype) -> torch.Tensor:
        """The weight with B to its right, [O, I + S]. A cache with such columns must hold B: `cached_b`."""
        if self._cached is not None and self._cached.shape[1] > self.inputs:
            return self._cached[: self.outputs]
        assert self._dequantizers.with_b is not None
        weight = self._linear.weight
        return self._dequantizers.with_b(weight.data, weight.quant_state, columns).to(dtype)

    def read_with_a(self, a_SI: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight with A below it, [O + S, I]. A cache with such rows must hold A: `cached_a`."""
        if self._cached is not None and len(self._cached) > self.outputs:
            return self._cached[:, : self.inputs]
        assert self._dequantizers.with_a is not None
        weight = self._linear.weight
        return self._dequantizers.with_a(weight.data, weight.quant_state, a_SI).to(dtype)

    def cache(self, dtype: torch.dtype, *, rows: int = 0, columns: int = 0) -> None:
        """Dequantize the weight once and read that copy from now on.

        The copy has `rows` rows of zeros below the weight and `columns` columns of zeros to its right.
        """
        weight_OI = self.read(dtype)
        self._cached = weight_OI.new_zeros(self.outputs + rows, self.inputs + columns)
        self._cached[: self.outputs, : self.inputs] = weight_OI

    def cached_b(self, first: int, rank: int) -> torch.Tensor | None:
        """The part of the cache [O, R] that must hold B, from column `first` on; None: there is none."""
        if self._cached is None or self._cached.shape[1] == self.inputs:
            return None
        return self._cached[: self.outputs, self.inputs + first : self.inputs + first + rank]

    def cached_a(self) -> torch.Tensor | None:
        """The part of the cache [S, I] that must hold A; None: there is none."""
        if self._cached is None or len(self._cached) == self.outputs:
            return None
        return self._cached[self.outputs :, : self.inputs]

    def is_cached_without(self, part: Literal["rows", "columns"]) -> bool:
        """Whether the weight is cached without rows below it or without columns to its right."""
        if self._cached is None:
            return False
        return len(self._cached) == self.outputs if part == "rows" else self._cached.shape[1] == self.inputs

    def drop_cache(self) -> bool:
        """Free the cache and dequantize at each read again. Returns whether there was a cache."""
        was_cached, self._cached = self._cached is not None, None
        return was_cached


class DenseWeight:
    """A weight in the model's own type."""

    can_append_adapter = False  # it would have to be copied

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        return self._linear.weight.detach().to(dtype)


def weight_of(linear: nn.Linear, dequantizers: Dequantizers) -> FourBitWeight | DenseWeight:
    """The weight of a linear layer, 4-bit or dense."""
    return FourBitWeight(linear, dequantizers) if isinstance(linear, Linear4bit) else DenseWeight(linear)
