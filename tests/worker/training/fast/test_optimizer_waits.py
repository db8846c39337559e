"""Steps of bitsandbytes' optimizers, with and without their waits."""

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.optim import optimizer

from worker.training.fast import optimizer_waits


def test_a_step_waits_for_nothing_and_then_again_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.Tensor] = []
    monkeypatch.setattr(optimizer, "sync_gpu", waits.append)
    weights = [torch.nn.Parameter(torch.ones(8)) for _ in range(2)]
    steps = bnb.optim.AdamW32bit(weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones(8)

    with optimizer_waits.left_out():
        steps.step()
    assert not waits
    steps.step()

    assert len(waits) == 2
