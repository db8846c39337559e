"""The inputs of the LoRA function: layers, adapters, kernels. Knows no module of a model.

T: tokens. I: inputs. O: outputs of a layer. R: the rank; S: the ranks of all layers together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Weight(Protocol):
    """A frozen weight, in whatever form it is stored."""

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""


class LowRankMatmul(Protocol):
    """Kernels for matrix products with A and B, as worker/kernels/low_rank_matmul.py has them."""

    MAX_RANK_GRADIENTS: int  # up to this rank `gradients` is faster than PyTorch

    def gradients(
        self,
        grad_TO: torch.Tensor,
        inner_TR: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
        out_TR: torch.Tensor,
    ) -> torch.Tensor:
        """Return the gradient of B, [O, R]; write the gradient of `inner` times `scaling` to `out_TR`."""

    def grad_of_x_under_dropout(
        self,
        grad_inner_TS: torch.Tensor,
        a_SI: torch.Tensor,
        masks: Sequence[torch.Tensor | None],
        scales: Sequence[float],
        ranks: Sequence[int],
    ) -> torch.Tensor:
        """The sum over layers of mask * (grad_inner @ A) * scale, [T, I]; None is a mask of ones."""

    def grads_of_a_under_dropout(
        self,
        x_TI: torch.Tensor,
        grad_inner_TS: torch.Tensor,
        masks: Sequence[torch.Tensor | None],
        scales: Sequence[float],
        ranks: Sequence[int],
    ) -> list[torch.Tensor]:
        """grad_inner^T @ (mask * x) * scale, [R, I], for each of up to three layers."""


@dataclass(frozen=True)
class LoraLinearSpec:
    """The frozen weight and the settings of one LoRA layer.

    `read_with_b`: the weight with B to its right, [O, I + S]. `read_with_a`: the weight with A below it,
    [O + S, I]. None: not supported.
    """

    weight: Weight
    bias_O: torch.Tensor | None
    scaling: float
    dropout: float
    read_with_b: Callable[[torch.dtype], torch.Tensor] | None = None
    read_with_a: Callable[[torch.dtype], torch.Tensor] | None = None


@dataclass(frozen=True)
class Adapters:
    """Copies of the adapters in the type of the products; `a_SI` holds the A of all layers.

    The backward pass reads them again, so they must not change between the two passes.
    """

    a_SI: torch.Tensor
    b_OR: tuple[torch.Tensor, ...]

    @property
    def ranks(self) -> list[int]:
        """R of every layer."""
        return [b_OR.shape[1] for b_OR in self.b_OR]


@dataclass(frozen=True)
class Call:
    """Arguments of the function that have no gradient. `is_padded`: the input has S padding columns."""

    layers: tuple[LoraLinearSpec, ...]
    adapters: Adapters
    low_rank: LowRankMatmul | None
    is_padded: bool
