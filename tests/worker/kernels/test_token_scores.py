"""Scores and gradients from logits in one kernel, against PyTorch."""

import pytest
import torch

from worker.kernels import token_scores
from worker.training.loss import LogitShape, _score_logits


@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(0.5), LogitShape(2.0, 3.0)], ids=str)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(3, 50), (1, 5000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_and_gradients_are_those_of_pytorch(
    device: torch.device, dtype: torch.dtype, tokens: int, vocabulary: int, shape: LogitShape
) -> None:
    torch.manual_seed(0)
    logits_NV = (3 * torch.randn(tokens, vocabulary, device=device)).to(dtype)
    logits_NV[:, 7] = logits_NV[:, 9] = logits_NV.amax(1)  # equal logits: the first one counts
    for target in (7, 9, vocabulary - 1):
        targets_N = torch.full((tokens,), target, device=device)
        *expected, grad_NV = _score_logits(logits_NV.cpu(), targets_N.cpu(), shape)
        found_NV = logits_NV.clone()

        found = token_scores.score(found_NV, targets_N, scale=shape.scale, softcap=shape.softcap)

        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left.cpu(), right, rtol=1e-4, atol=1e-5)
        tolerance = 1e-5 if dtype is torch.float32 else 1e-2
        torch.testing.assert_close(found_NV.cpu(), grad_NV, rtol=tolerance, atol=1e-6)
        assert found[2].all() == (target == 7)
