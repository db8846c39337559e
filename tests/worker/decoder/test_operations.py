"""Kernels compute a layer's parts as PyTorch does, and rotation backwards is the gradient of rotation."""

import pytest
import torch

from worker.decoder.fused_operations import FusedOperations
from worker.decoder.operations import Activation, Norm, Operations, TorchOperations


def run_all(ops: Operations, dtype: torch.dtype, kind: Activation, *, adds_one: bool) -> list[torch.Tensor]:
    """Every operation on the same inputs."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    norm = Norm(draw(32), 1e-5, adds_one=adds_one)
    x_TH, grad_TH, passed_TH = draw(6, 32), draw(6, 32), draw(6, 32)
    normed_TH, factor_T = ops.norm(x_TH, norm, padding=8)
    gradients = [
        ops.norm_gradient(grad_TH, passed, x_TH, norm, factor_T, padding=8) for passed in (passed_TH, None)
    ]
    angles = torch.randn(6, 4, generator=random).repeat(1, 2)
    rotated = ops.rotate(draw(6, 4, 8), draw(6, 2, 8), angles.cos().to(dtype), angles.sin().to(dtype))
    gate_TI, up_TI = draw(6, 40).split(20, dim=1)
    active_TI = ops.activate(gate_TI, up_TI, kind, padding=8)
    ops.activation_gradient(draw(6, 20), gate_TI, up_TI, kind)
    return [normed_TH, factor_T, *gradients, *rotated, active_TI, gate_TI, up_TI]


@pytest.mark.parametrize("adds_one", [False, True])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_kernels_compute_what_pytorch_does(
    dtype: torch.dtype, tolerance: float, kind: Activation, adds_one: bool
) -> None:
    expected = run_all(TorchOperations(), dtype, kind, adds_one=adds_one)

    found = run_all(FusedOperations(), dtype, kind, adds_one=adds_one)

    assert found[0].stride() == expected[0].stride() == (40, 1)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
