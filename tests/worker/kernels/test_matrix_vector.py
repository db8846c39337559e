"""One token through a linear layer."""

import pytest
import torch

from worker.kernels import matrix_vector

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 3), (100, 7), (2100, 4)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_product_is_that_of_torch(inputs, outputs, has_bias):
    torch.manual_seed(0)
    x_1I = torch.randn(1, inputs, device=DEVICE)
    weight_OI = torch.randn(outputs + 1, inputs, device=DEVICE)[:outputs]
    bias_O = torch.randn(outputs, device=DEVICE) if has_bias else None

    y_1O = matrix_vector.product(x_1I, weight_OI, bias_O)

    torch.testing.assert_close(
        y_1O, torch.nn.functional.linear(x_1I, weight_OI, bias_O), atol=1e-3, rtol=1e-4
    )
