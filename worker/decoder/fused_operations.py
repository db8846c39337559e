"""The parts of a decoder layer that are not linear, each by one Triton kernel. CUDA only, or Triton's
interpreter.

T: tokens. H: the hidden size. I: the width of the MLP. H, K (in THD, TKD): heads of queries and of keys. D:
the width of a head.
"""

import torch

from worker.decoder.operations import Activation, Norm
from worker.kernels import norm as norm_kernels, rotary, swiglu


class FusedOperations:
    """As `Operations`."""

    def norm(self, x_TH: torch.Tensor, norm: Norm, *, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Operations`."""
        return norm_kernels.rms_norm_and_scale(
            x_TH, norm.weight, norm.epsilon, adds_one=norm.adds_one, padding=padding
        )

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
        return norm_kernels.gradient(
            grad_TH, passed_TH, x_TH, norm.weight, factor_T, adds_one=norm.adds_one, padding=padding
        )

    def rotate(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, cosine_TD: torch.Tensor, sine_TD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Operations`."""
        rotated = rotary.rotate(q_THD.transpose(0, 1), k_TKD.transpose(0, 1), cosine_TD, sine_TD)
        return rotated[0].transpose(0, 1), rotated[1].transpose(0, 1)

    def activate(
        self, gate_TI: torch.Tensor, up_TI: torch.Tensor, kind: Activation, *, padding: int = 0
    ) -> torch.Tensor:
        """As `Operations`."""
        return swiglu.activate(gate_TI, up_TI, is_gelu=kind == "gelu_tanh", padding=padding)

    def activation_gradient(
        self, grad_TI: torch.Tensor, gate_TI: torch.Tensor, up_TI: torch.Tensor, kind: Activation
    ) -> None:
        """As `Operations`."""
        swiglu.gradient(grad_TI, gate_TI, up_TI, is_gelu=kind == "gelu_tanh")
