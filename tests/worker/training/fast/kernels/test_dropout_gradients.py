"""The gradient of an input under dropout against the same layer by layer."""

import pytest
import torch

from worker.training.fast.kernels import dropout_gradients


@pytest.mark.parametrize(
    ("tokens", "inputs", "ranks", "dropouts"),
    [
        (7, 24, [4], [0.3]),
        (1, 8, [1, 3], [0.1, 0.5]),
        (70, 200, [16, 16, 16], [0.1, 0.1, 0.1]),
        (64, 256, [8, 64], [0.0, 0.2]),
        (33, 131, [5, 130, 20], [0.1, 0.3, 0.0]),
    ],
)
def test_masks_apply_where_they_were_drawn(
    device: torch.device, tokens: int, inputs: int, ranks: list[int], dropouts: list[float]
) -> None:
    torch.manual_seed(0)
    grad_inner_TS = torch.randn(tokens, sum(ranks) + 3, device=device)[:, 3:]
    a_SI = torch.randn(sum(ranks), inputs, device=device)
    masks = [torch.rand(tokens, inputs, device=device) >= p if p else None for p in dropouts]
    scales = [1 / (1 - p) for p in dropouts]

    found_TI = dropout_gradients.through_adapters(grad_inner_TS, a_SI, masks, scales, ranks)

    expected_TI = torch.zeros(tokens, inputs, device=device)
    for grad_TR, a_RI, mask_TI, scale in zip(
        grad_inner_TS.split(ranks, 1), a_SI.split(ranks), masks, scales, strict=True
    ):
        expected_TI += grad_TR @ a_RI * (1 if mask_TI is None else mask_TI) * scale
    torch.testing.assert_close(found_TI, expected_TI, rtol=1e-4, atol=1e-4)
