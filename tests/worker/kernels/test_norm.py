"""RMSNorm with and without its gradient, against transformers' own module and autograd."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from worker.kernels import norm


@pytest.mark.parametrize("padding", [0, 24])
@pytest.mark.parametrize("width", [64, 48], ids=["whole", "odd"])
def test_a_norm_and_its_gradient(device: torch.device, width: int, padding: int) -> None:
    torch.manual_seed(0)
    module = LlamaRMSNorm(width, eps=1e-5).to(device)
    torch.nn.init.normal_(module.weight)
    x_TH, grad_TH, passed_TH = (torch.randn(5, width, device=device) for _ in range(3))
    x_TH.requires_grad_()
    expected_TH = module(x_TH)

    found_TH, scale_T = norm.rms_norm_and_scale(x_TH.detach(), module.weight.detach(), 1e-5, padding=padding)
    apart_TH = torch.cat([passed_TH, torch.full_like(passed_TH, 7)], dim=1)[:, :width]
    found_grad = norm.gradient(
        grad_TH, apart_TH, x_TH.detach(), module.weight.detach(), scale_T, padding=padding
    )

    assert found_TH.stride() == (width + padding, 1)
    torch.testing.assert_close(found_TH, expected_TH)
    (expected_grad,) = torch.autograd.grad([expected_TH, x_TH * 1], [x_TH], [grad_TH, passed_TH])
    assert found_grad.stride() == (width + padding, 1)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_rms_norm_is_that_of_llama(device: torch.device) -> None:
    module = LlamaRMSNorm(72, eps=1e-5).to(device)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(1, 5, 72, device=device)

    torch.testing.assert_close(norm.rms_norm(x, module.weight, 1e-5), module(x))
