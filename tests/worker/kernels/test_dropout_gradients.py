"""Gradients under dropout against the same layer by layer."""

import pytest
import torch

from worker.kernels import dropout_gradients


@pytest.mark.parametrize(
    ("tokens", "inputs", "ranks", "dropouts"),
    [
        (7, 24, [4], [0.3]),
        (1, 8, [1, 3], [0.1, 0.5]),
        (70, 200, [16, 16, 16], [0.1, 0.1, 0.1]),
        (64, 256, [8, 64], [0.0, 0.2]),
        (33, 131, [5, 130, 20], [0.1, 0.3, 0.0]),
        (1100, 16, [4], [0.5]),
    ],
)
def test_masks_apply_where_they_were_drawn(
    device: torch.device,
    tokens: int,
    inputs: int,
    ranks: list[int],
    dropouts: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dropout_gradients, "_PROGRAMS", 4)  # some tokens of several steps each
    torch.manual_seed(0)
    grad_inner_TS = torch.randn(tokens, sum(ranks) + 3, device=device)[:, 3:]
    x_TI, a_SI = torch.randn(tokens, inputs, device=device), torch.randn(sum(ranks), inputs, device=device)
    masks = [torch.rand(tokens, inputs, device=device) >= p if p else None for p in dropouts]
    scales = [1 / (1 - p) for p in dropouts]

    found_TI = dropout_gradients.grad_of_x_under_dropout(grad_inner_TS, a_SI, masks, scales, ranks)
    found_of_a = dropout_gradients.grads_of_a_under_dropout(x_TI, grad_inner_TS, masks, scales, ranks)

    expected_TI = torch.zeros(tokens, inputs, device=device)
    for grad_TR, a_RI, mask_TI, scale, found_RI in zip(
        grad_inner_TS.split(ranks, 1), a_SI.split(ranks), masks, scales, found_of_a, strict=True
    ):
        kept = torch.ones_like(x_TI) if mask_TI is None else mask_TI
        expected_TI += grad_TR @ a_RI * kept * scale
        torch.testing.assert_close(found_RI, grad_TR.t() @ (x_TI * kept) * scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_TI, expected_TI, rtol=1e-4, atol=1e-4)
