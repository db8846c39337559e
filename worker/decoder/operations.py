"""The parts of a decoder layer that are not linear, each with its gradient: norms, rotation, activation.

An implementation computes them by PyTorch (here) or by kernels (`fused_operations.py`). The numbers are those
of transformers' layers: sums in float32, rounded where those round.

T: tokens. H: the hidden size. I: the width of the MLP. H, K (in THD, TKD): heads of queries and of keys. D:
the width of a head.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch.nn import functional

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Norm:
    """RMSNorm (Zhang and Sennrich 2019). `adds_one`: Gemma's, which multiplies with 1 + weight before it
    rounds.
    """

    weight: torch.Tensor
    epsilon: float
    adds_one: bool = False


class Operations(Protocol):
    """How the parts are computed. `padding`: so many elements of memory stay free behind each row of a
    result.
    """

    def norm(self, x_TH: torch.Tensor, norm: Norm, *, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normed input, and the factor of each row [T] in float32, for the gradient."""

    def norm_gradient(
        self,
        grad_TH: torch.Tensor,
        passed_TH: torch.Tensor | None,
        x_TH: torch.Tensor,
        norm: Norm,
        factor_T: torch.Tensor,
        *,
        padding: int = 0,
    ) -> torch.Tensor:
        """Return the gradient of x through the norm, plus `passed_TH`, added in float32."""

    def rotate(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, cosine_TD: torch.Tensor, sine_TD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate both by their positions' angles; with the sines' opposites, the gradient of that."""

    def activate(
        self, gate_TI: torch.Tensor, up_TI: torch.Tensor, kind: Activation, *, padding: int = 0
    ) -> torch.Tensor:
        """Return activation(gate) · up."""

    def activation_gradient(
        self, grad_TI: torch.Tensor, gate_TI: torch.Tensor, up_TI: torch.Tensor, kind: Activation
    ) -> None:
        """Overwrite gate and up with their gradients."""


class TorchOperations:
    """By PyTorch, on any device."""

    def norm(self, x_TH: torch.Tensor, norm: Norm, *, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Operations`."""
        value_TH = x_TH.float()
        factor_T = torch.rsqrt(value_TH.square().mean(1) + norm.epsilon)
        value_TH = value_TH * factor_T[:, None]
        if norm.adds_one:
            normed_TH = (value_TH * (1 + norm.weight.float())).to(x_TH.dtype)
        else:
            normed_TH = value_TH.to(x_TH.dtype) * norm.weight
        return _with_free_columns(normed_TH, padding), factor_T

    def norm_gradient(
        self,
        grad_TH: torch.Tensor,
        passed_TH: torch.Tensor | None,
        x_TH: torch.Tensor,
        norm: Norm,
        factor_T: torch.Tensor,
        *,
        padding: int = 0,
    ) -> torch.Tensor:
        """As `Operations`."""
        value_TH = x_TH.float() * factor_T[:, None]
        through_TH = grad_TH.float() * (norm.weight.float() + norm.adds_one)
        through_TH = through_TH - value_TH * (value_TH * through_TH).mean(1, keepdim=True)
        through_TH = through_TH * factor_T[:, None]
        total_TH = through_TH if passed_TH is None else through_TH + passed_TH.float()
        return _with_free_columns(total_TH.to(x_TH.dtype), padding)

    def rotate(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, cosine_TD: torch.Tensor, sine_TD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Operations`."""
        cosine_T1D, sine_T1D = cosine_TD[:, None], sine_TD[:, None]
        q_THD, k_TKD = (heads * cosine_T1D + _rotate_half(heads) * sine_T1D for heads in (q_THD, k_TKD))
        return q_THD, k_TKD

    def activate(
        self, gate_TI: torch.Tensor, up_TI: torch.Tensor, kind: Activation, *, padding: int = 0
    ) -> torch.Tensor:
        """As `Operations`."""
        return _with_free_columns(_activate(gate_TI, kind) * up_TI, padding)

    def activation_gradient(
        self, grad_TI: torch.Tensor, gate_TI: torch.Tensor, up_TI: torch.Tensor, kind: Activation
    ) -> None:
        """As `Operations`."""
        with torch.enable_grad():
            value_TI = gate_TI.detach().float().requires_grad_()
            active_TI = _activate(value_TI, kind)
        grad_active_TI = grad_TI.float() * up_TI.float()
        (grad_gate_TI,) = torch.autograd.grad(active_TI, value_TI, grad_active_TI)
        rounded_TI = active_TI.detach().to(gate_TI.dtype)
        gate_TI.copy_(grad_gate_TI)
        up_TI.copy_(grad_TI * rounded_TI)


def _activate(gate_TI: torch.Tensor, kind: Activation) -> torch.Tensor:
    return functional.silu(gate_TI) if kind == "silu" else functional.gelu(gate_TI, approximate="tanh")


def _rotate_half(heads_THD: torch.Tensor) -> torch.Tensor:
    low, high = heads_THD.chunk(2, dim=-1)
    return torch.cat([-high, low], dim=-1)


def _with_free_columns(matrix_TH: torch.Tensor, padding: int) -> torch.Tensor:
    if not padding:
        return matrix_TH
    tokens, width = matrix_TH.shape
    return matrix_TH.new_empty(tokens, width + padding)[:, :width].copy_(matrix_TH)
