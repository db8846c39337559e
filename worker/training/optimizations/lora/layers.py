"""What the LoRA function of lora_linear.py computes with: layers, adapters, kernels. Knows no module.

T: tokens. I: inputs. O: outputs of a layer. R: the rank; S: the ranks of all layers together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Weight(Protocol):
    """A frozen weight, however it is held."""

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""


class NarrowProducts(Protocol):
    """Kernels for products with B, up to some ranks (kernels/narrow_products.py)."""

    MOST_RANKS_ADDED: int
    MOST_RANKS_LOOKED_AT: int

    def add(self, summand_TO: torch.Tensor, inner_TR: torch.Tensor, b_OR: torch.Tensor) -> torch.Tensor:
        """summand + inner @ B^T, [T, O]."""

    def gradients(
        self,
        grad_TO: torch.Tensor,
        inner_TR: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
        out_TR: torch.Tensor,
    ) -> torch.Tensor:
        """The gradient of B [O, R]; scaling times that of `inner` is written to `out_TR`."""

    def through_dropout(
        self,
        grad_inner_TS: torch.Tensor,
        a_SI: torch.Tensor,
        masks: Sequence[torch.Tensor | None],
        scales: Sequence[float],
        ranks: Sequence[int],
    ) -> torch.Tensor:
        """The sum over layers of mask * (grad_inner @ A) * scale, [T, I]; a mask of None keeps all."""

    def grads_of_a_under_dropout(
        self,
        x_TI: torch.Tensor,
        grad_inner_TS: torch.Tensor,
        masks: Sequence[torch.Tensor | None],
        scales: Sequence[float],
        ranks: Sequence[int],
    ) -> list[torch.Tensor]:
        """Of each of up to three layers grad_inner^T @ (mask * x) * scale, [R, I]."""


@dataclass(frozen=True)
class Layer:
    """One LoRA layer but for its adapter. `read_beside`: the weight with B behind it [O, I + S].
    `read_above`: the weight with A below it [O + S, I]. None: it can't be read so."""

    weight: Weight
    bias_O: torch.Tensor | None
    scaling: float
    dropout: float
    read_beside: Callable[[torch.dtype], torch.Tensor] | None = None
    read_above: Callable[[torch.dtype], torch.Tensor] | None = None


@dataclass(frozen=True)
class Adapters:
    """The adapters in the type of the products. They are read again in the backward pass: never changed
    between the two. `a_SI` holds the A of all layers, one below the other."""

    a_SI: torch.Tensor
    b_OR: tuple[torch.Tensor, ...]

    @property
    def ranks(self) -> list[int]:
        """Of every layer."""
        return [b_OR.shape[1] for b_OR in self.b_OR]


@dataclass(frozen=True)
class Call:
    """What the function needs beside tensors with gradients. `is_beside`: the input has room for the products
    with A."""

    layers: tuple[Layer, ...]
    adapters: Adapters
    narrow: NarrowProducts | None
    is_beside: bool
