"""Products with B, against the same in float32."""

import pytest
import torch

from worker.kernels import low_rank_matmul

SIZES = [(5, 24, 4), (70, 130, 16), (600, 200, 32), (1, 64, 3)]


@pytest.mark.parametrize(("tokens", "outputs", "rank"), SIZES)
def test_both_gradients_are_right(device: torch.device, tokens: int, outputs: int, rank: int) -> None:
    torch.manual_seed(0)
    grad_TO = torch.randn(tokens, outputs + 3, device=device)[:, :outputs]
    inner_TR, b_OR = torch.randn(tokens, rank, device=device), torch.randn(outputs, rank, device=device)
    out = torch.full((tokens, rank + 4), 7.0, device=device)

    grad_b_OR = low_rank_matmul.gradients(grad_TO, inner_TR, b_OR, 0.5, out[:, 1 : 1 + rank])

    torch.testing.assert_close(grad_b_OR, grad_TO.t() @ inner_TR, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out[:, 1 : 1 + rank], 0.5 * grad_TO @ b_OR, rtol=1e-4, atol=1e-4)
    assert (out[:, 0] == 7).all()
    assert (out[:, 1 + rank :] == 7).all()
