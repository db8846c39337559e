"""One token through a linear layer."""

import pytest
import torch

from worker.kernels import matrix_vector

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

    expected_1O = torch.nn.functional.linear(x_1I, weight_OI, bias_O) + (plus_1O if has_plus else 0)
    torch.testing.assert_close(y_1O, expected_1O, atol=1e-3, rtol=1e-4)
