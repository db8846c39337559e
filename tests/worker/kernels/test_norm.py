"""RMSNorm with its gradient, against transformers' own modules and autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.worker.kernels.pending_loras import make_update
from worker.kernels import norm


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("padding", [0, 24])
@pytest.mark.parametrize(("tokens", "width"), [(5, 64), (5, 48), (70, 16), (2, 2100)])
def test_a_norm_and_its_gradient(
    device: torch.device, tokens: int, width: int, padding: int, kind: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    module = kind(width, eps=1e-5).to(device)
    torch.nn.init.normal_(module.weight)
    x_TH, grad_TH, passed_TH = (torch.randn(tokens, width, device=device) for _ in range(3))
    x_TH.requires_grad_()
    expected_TH = module(x_TH)
    (expected_grad,) = torch.autograd.grad([expected_TH, x_TH * 1], [x_TH], [grad_TH, passed_TH])
    (expected_alone,) = torch.autograd.grad(module(x_TH), [x_TH], grad_TH)
    options = {"adds_one": kind is Gemma3RMSNorm, "padding": padding}
    weight_H, x_TH = module.weight.detach(), x_TH.detach()

    found_TH, scale_T = norm.rms_norm_and_scale(x_TH, weight_H, 1e-5, **options)
    apart_TH = torch.cat([passed_TH, torch.full_like(passed_TH, 7)], dim=1)[:, :width]
    found_grad = norm.gradient(grad_TH, apart_TH, x_TH, weight_H, scale_T, **options)
    alone = norm.gradient(grad_TH, None, x_TH, weight_H, scale_T, **options)

    assert found_TH.stride() == found_grad.stride() == (width + padding, 1)
    torch.testing.assert_close(found_TH, expected_TH)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, expected_alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
def test_in_bfloat16_a_norm_is_rounded_as_transformers_rounds_it(
    device: torch.device, kind: type[nn.Module]
) -> None:
    if device.type == "cpu":
        pytest.skip("Triton's interpreter truncates to bfloat16")
    torch.manual_seed(0)
    module = kind(64, eps=1e-5).to(device, torch.bfloat16)
    torch.nn.init.normal_(module.weight)
    x_TH = torch.randn(40, 64, device=device).bfloat16()

    found_TH, _scale = norm.rms_norm_and_scale(
        x_TH, module.weight.detach(), 1e-5, adds_one=kind is Gemma3RMSNorm
    )

    assert (found_TH == module(x_TH)).float().mean() > 0.99


@pytest.mark.parametrize("width", [48, 2100])
@pytest.mark.parametrize("has_adapters", [True, False])
@pytest.mark.parametrize("has_output_norm", [True, False])
@pytest.mark.parametrize("adds_one", [True, False])
def test_what_is_added_to_the_stream_before_its_norm(
    device: torch.device, width: int, has_adapters: bool, has_output_norm: bool, adds_one: bool
) -> None:
    torch.manual_seed(0)
    stream_TH, weight_H, output_weight_H = torch.randn(5, width, device=device).split([3, 1, 1])
    # Rows lie apart, as a product with the rows of adapters leaves them.
    y_TH = torch.randn(3, width + 7, device=device)[:, :width]
    update, added_TH = make_update(3, [width], str(device))

    new_TH, normed_TH = norm.add_and_norm(
        stream_TH,
        y_TH,
        update if has_adapters else None,
        weight_H[0],
        1e-5,
        output_weight_H=output_weight_H[0] if has_output_norm else None,
        adds_one=adds_one,
    )

    whole_TH = y_TH + added_TH if has_adapters else y_TH
    if has_output_norm:
        whole_TH = functional.rms_norm(whole_TH, (width,), output_weight_H[0] + adds_one, 1e-5)
    torch.testing.assert_close(new_TH, stream_TH + whole_TH, rtol=1e-4, atol=1e-4)
    expected_TH = functional.rms_norm(stream_TH + whole_TH, (width,), weight_H[0] + adds_one, 1e-5)
    torch.testing.assert_close(normed_TH, expected_TH, rtol=1e-4, atol=1e-4)
