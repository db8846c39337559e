"""LoRA adapters of linear layers that read one input, and their gradients. Knows neither layers nor autograd.

All adapters share one product with A; its result [T, S] and the input are all that the gradients need. (That
a LoRA layer's backward pass needs no more is shown in Unsloth, unsloth.ai/blog, "manual autograd".)

T: tokens. I: inputs. O: outputs of a layer. R: the rank of an adapter; S: the ranks of all together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import nn


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
class Adapter:
    """A LoRA adapter of one layer; `dropout` is in training mode or not, as its module is."""

    a_RI: nn.Parameter
    b_OR: nn.Parameter
    scaling: float
    dropout: nn.Module

    def dropout_now(self) -> float:
        """The share of inputs that a pass in the present mode drops."""
        return self.dropout.p if isinstance(self.dropout, nn.Dropout) and self.dropout.training else 0.0


@dataclass
class SavedInput:
    """What the gradients need of a forward pass: nothing of the input where no layer has an adapter.

    `masks`: of the adapters' dropout, None without.
    """

    x_TI: torch.Tensor | None
    inner_TS: torch.Tensor
    masks: tuple[torch.Tensor | None, ...]
    dropouts: tuple[float, ...]


class InputAdapters:
    """The adapters of layers with one input, and copies of them in the type of the products."""

    def __init__(
        self, adapters: Sequence[Adapter], dtype: torch.dtype, low_rank: LowRankMatmul | None
    ) -> None:
        """`low_rank`: None for PyTorch's products."""
        self._adapters = tuple(adapters)
        self._dtype = dtype
        self._low_rank = low_rank
        self._ranks = [len(adapter.a_RI) for adapter in adapters]
        *self.firsts, self.columns = accumulate(self._ranks, initial=0)
        self._a_SI: torch.Tensor | None = None
        self._b_OR: list[torch.Tensor] = []

    @property
    def has_copies(self) -> bool:
        """Whether `list_copies` was called, so that passes can be computed."""
        return self._a_SI is not None or not self._adapters

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every adapter in turn."""
        return [matrix for adapter in self._adapters for matrix in (adapter.a_RI, adapter.b_OR)]

    @property
    def a_SI(self) -> torch.Tensor:
        """The copies of all A, one below the other."""
        assert self._a_SI is not None
        return self._a_SI

    def b_OR(self, number: int) -> torch.Tensor:
        """The copy of an adapter's B."""
        return self._b_OR[number]

    def rank(self, number: int) -> int:
        """The rank of an adapter; its columns of [T, S] begin at `firsts[number]`."""
        return self._ranks[number]

    def list_copies(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The copies to make before a pass: (to, from). The backward pass reads them, too."""
        if self._a_SI is None and self._adapters:
            first = self._adapters[0].a_RI
            self._a_SI = first.new_empty(self.columns, first.shape[1], dtype=self._dtype)
            self._b_OR = [torch.empty_like(one.b_OR, dtype=self._dtype) for one in self._adapters]
        copies = []
        for adapter, a_RI, b_OR in zip(self._adapters, self._split_a(), self._b_OR, strict=True):
            copies += [(a_RI, adapter.a_RI.detach()), (b_OR, adapter.b_OR.detach())]
        return copies

    def drop_now(self) -> bool:
        """Whether a pass in the present mode drops inputs."""
        return any(adapter.dropout_now() for adapter in self._adapters)

    def drop_in_training(self) -> bool:
        """Whether a pass in training mode drops inputs."""
        return any(isinstance(one.dropout, nn.Dropout) and one.dropout.p for one in self._adapters)

    def split(self, inner_TS: torch.Tensor) -> Sequence[torch.Tensor]:
        """The columns [T, R] of each adapter."""
        return inner_TS.split(self._ranks, dim=1)

    def project_down(self, x_TI: torch.Tensor, inner_TS: torch.Tensor) -> SavedInput:
        """Write the products with A times `scaling` to `inner_TS`. Returns what the gradients need."""
        if not self._adapters:
            return SavedInput(None, inner_TS, (), ())
        dropouts = tuple(adapter.dropout_now() for adapter in self._adapters)
        scalings = {adapter.scaling for adapter in self._adapters}
        if not any(dropouts) and len(scalings) == 1:
            _scaled_product(x_TI, self.a_SI.t(), scalings.pop(), out=inner_TS)
            return SavedInput(x_TI, inner_TS, (None,) * len(self._adapters), dropouts)
        masks: list[torch.Tensor | None] = []
        parts = zip(self._adapters, dropouts, self._split_a(), self.split(inner_TS), strict=True)
        for adapter, dropout, a_RI, inner_TR in parts:
            left_TI, mask_TI = torch.native_dropout(x_TI, dropout, True) if dropout else (x_TI, None)
            masks.append(mask_TI)
            _scaled_product(left_TI, a_RI.t(), adapter.scaling, out=inner_TR)
        return SavedInput(x_TI, inner_TS, tuple(masks), dropouts)

    def grads_through_b(
        self, saved: SavedInput, grads_TO: Sequence[torch.Tensor], grad_inner_TS: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the gradient of every B, [O, R]; write the scaled ones of the products with A.

        `grads_TO`: of the outputs of the layers that have an adapter.
        """
        inners, outs = self.split(saved.inner_TS), self.split(grad_inner_TS)
        found = []
        for adapter, b_OR, grad_TO, inner_TR, out_TR in zip(
            self._adapters, self._b_OR, grads_TO, inners, outs, strict=True
        ):
            is_low = self._low_rank is not None and b_OR.shape[1] <= self._low_rank.MAX_RANK_GRADIENTS
            if self._low_rank is not None and is_low and grad_TO.stride(1) == 1:
                found.append(self._low_rank.gradients(grad_TO, inner_TR, b_OR, adapter.scaling, out_TR))
            else:
                _scaled_product(grad_TO, b_OR, adapter.scaling, out=out_TR)
                found.append(_parameter_gradient(grad_TO.t(), inner_TR))
        return found

    def grads_of_a(self, saved: SavedInput, grad_inner_TS: torch.Tensor) -> Sequence[torch.Tensor]:
        """The gradient of every A, [R, I]."""
        if saved.x_TI is None:
            return []
        if all(mask is None for mask in saved.masks):
            return _parameter_gradient(grad_inner_TS.t(), saved.x_TI).split(self._ranks)
        scales = [1 / (1 - dropout) for dropout in saved.dropouts]
        if self._low_rank:
            given = (saved.x_TI, grad_inner_TS, saved.masks, scales, self._ranks)
            return self._low_rank.grads_of_a_under_dropout(*given)
        parts = zip(saved.masks, saved.dropouts, self.split(grad_inner_TS), strict=True)
        return [
            _parameter_gradient(grad_inner_TR.t(), _apply_mask(saved.x_TI, mask_TI, dropout))
            for mask_TI, dropout, grad_inner_TR in parts
        ]

    def grad_of_input(self, saved: SavedInput, grad_inner_TS: torch.Tensor) -> torch.Tensor | None:
        """The gradient of the input through the adapters [T, I], in new memory; None without adapters."""
        if not self._adapters:
            return None
        if all(mask is None for mask in saved.masks):
            return torch.mm(grad_inner_TS, self.a_SI)
        if self._low_rank:
            scales = [1 / (1 - dropout) for dropout in saved.dropouts]
            given = (grad_inner_TS, self.a_SI, saved.masks, scales, self._ranks)
            return self._low_rank.grad_of_x_under_dropout(*given)
        parts = zip(saved.masks, saved.dropouts, self._split_a(), self.split(grad_inner_TS), strict=True)
        grads_TI = [
            _apply_mask(torch.mm(grad_inner_TR, a_RI), mask_TI, dropout)
            for mask_TI, dropout, a_RI, grad_inner_TR in parts
        ]
        return torch.stack(grads_TI).sum(0) if len(grads_TI) > 1 else grads_TI[0]

    def _split_a(self) -> Sequence[torch.Tensor]:
        return [] if self._a_SI is None else self._a_SI.split(self._ranks)


def _apply_mask(x_TI: torch.Tensor, mask_TI: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """The input after dropout with a mask drawn before; None is a mask of ones."""
    if mask_TI is None:
        return x_TI
    left_TI: torch.Tensor = torch.ops.aten.native_dropout_backward(x_TI, mask_TI, 1 / (1 - dropout))
    return left_TI


def _parameter_gradient(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter as a product: in float32 where PyTorch supports that output."""
    if left.is_cuda and left.dtype.itemsize == 2:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


def _scaled_product(
    left: torch.Tensor, right: torch.Tensor, scale: float, *, out: torch.Tensor
) -> torch.Tensor:
    """Write left @ right * scale to `out`, scaled in the epilogue; `out` is not read."""
    return torch.addmm(out, left, right, beta=0, alpha=scale, out=out)
