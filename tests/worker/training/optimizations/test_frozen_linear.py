"""A 4-bit layer without an adapter computes what bitsandbytes' own does, whatever lies between its rows."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from worker.models.frozen_weights import BITSANDBYTES
from worker.training.optimizations.frozen_linear import FrozenLinear


@pytest.mark.parametrize("is_cached", [False, True], ids=["dequantized", "cached"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["own type", "another"])
def test_output_and_gradient(dtype: torch.dtype, bias: bool, is_cached: bool) -> None:
    torch.manual_seed(0)
    layer = Linear4bit(64, 32, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False
    layer.requires_grad_(False).to("cpu")
    frozen = FrozenLinear(layer, torch.float32, BITSANDBYTES)
    if is_cached:
        frozen.weight.cache(torch.float32)
    x = torch.randn(2, 3, 80).to(dtype)[..., :64].requires_grad_()
    expected = layer(x.contiguous())

    found = frozen.forward(x)

    torch.testing.assert_close(found, expected)
    grad = torch.randn(2, 3, 32).to(dtype)
    left, right = (torch.autograd.grad(y, x, grad)[0] for y in (found, expected))
    torch.testing.assert_close(left, right)
