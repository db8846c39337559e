"""One token through a linear layer."""

import pytest
import torch
from torch.nn import functional

from worker.kernels.serving import matrix_vector

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 3), (8192, 2), (100, 7), (2048, 5), (2100, 4)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_plus", [True, False])
def test_product_is_that_of_torch(inputs, outputs, has_bias, has_plus):
    torch.manual_seed(0)
    x_1I = torch.randn(1, inputs, device=DEVICE)
    weight_OI = torch.randn(outputs + 1, inputs, device=DEVICE)[:outputs]
    bias_O = torch.randn(outputs, device=DEVICE) if has_bias else None

    plus_1O = torch.randn(1, outputs, device=DEVICE) if has_plus else None

    y_1O = matrix_vector.product(x_1I, weight_OI, bias_O, plus_1O)

    expected_1O = functional.linear(x_1I, weight_OI, bias_O) + (plus_1O if has_plus else 0)
    torch.testing.assert_close(y_1O, expected_1O, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 5), (100, 6)])
@pytest.mark.parametrize("is_gated", [True, False])
def test_norm_and_gate_are_part_of_the_product(inputs, outputs, is_gated):
    torch.manual_seed(0)
    x_1I, norm_I = torch.randn(2, 1, inputs, device=DEVICE).unbind()
    weight_OI = torch.randn(2 * outputs, inputs, device=DEVICE) / inputs**0.5

    y_1O = matrix_vector.product(
        x_1I, weight_OI, norm=matrix_vector.InputNorm(norm_I[0], 0.1), is_gated=is_gated
    )

    normed_1I = functional.rms_norm(x_1I, (inputs,), norm_I[0], 0.1)
    expected_1O = functional.linear(normed_1I, weight_OI)
    if is_gated:
        expected_1O = functional.silu(expected_1O[:, :outputs]) * expected_1O[:, outputs:]
    torch.testing.assert_close(y_1O, expected_1O, atol=1e-4, rtol=1e-4)
