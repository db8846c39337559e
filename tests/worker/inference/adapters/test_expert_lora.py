"""Grouped products over experts."""

import pytest
import torch

from worker.inference.adapters import expert_lora
from worker.inference.adapters.expert_lora import ExpertGroups


def test_one_product_over_all_experts_is_that_of_each_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: nothing depends on how many pairs an expert has, which may be none."""
    torch.manual_seed(0)
    experts_NK = torch.tensor([[4, 1], [1, 0], [4, 2], [1, 4]])
    weight_EIO = torch.randn(6, 16, 32)
    groups = ExpertGroups.sort(experts_NK, 6)
    x_PI = torch.randn(4, 16)[groups.tokens_P]
    expected_PO = torch.stack(
        [
            x_I @ weight_EIO[expert]
            for x_I, expert in zip(x_PI, experts_NK.flatten()[groups.order_P], strict=True)
        ]
    )

    assert groups.ends_E.tolist() == [1, 4, 5, 5, 8, 8]
    torch.testing.assert_close(groups.product(x_PI, weight_EIO), expected_PO)
    monkeypatch.setattr(expert_lora, "_can_group", lambda _x, _weight: True)
    for weight in (weight_EIO, weight_EIO.transpose(1, 2).contiguous().transpose(1, 2)):
        torch.testing.assert_close(groups.product(x_PI, weight), expected_PO)
