"""How far an optimization may be from the libraries in its trial."""

import pytest
import torch

from worker.training.optimizations.trial import StepEffect, find_difference_after_step

LOSSES_N = torch.full((100,), 10.0, dtype=torch.float64)
ROUNDED_N = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def find(away: float, *, gain: float, noise: float, first_order: float | None = None) -> str | None:
    """An optimization whose mean loss is off by `away`; `noise`: what rounding changes in a token's loss."""
    exact = gain if first_order is None else first_order
    return find_difference_after_step(StepEffect(LOSSES_N, gain, exact, noise * ROUNDED_N), LOSSES_N + away)


def test_a_loss_that_misses_a_fifth_of_the_first_step_is_a_fault() -> None:
    fault = find(0.02, gain=0.1, noise=0.0)

    assert fault is not None
    assert fault.startswith("one step of the optimizer lowers the loss by 0.08; by 0.1 without optimizations")
    assert find(0.004, gain=0.1, noise=0.0) is None


def test_less_rounding_than_without_optimizations_is_no_fault() -> None:
    """What a small B adds is rounded away in PEFT's layers, so they gain a tenth."""
    assert find(-0.5, gain=0.1, noise=0.0, first_order=1.0) is None
    assert find(-0.9, gain=0.1, noise=0.0, first_order=1.0) is None
    assert find(-1.1, gain=0.1, noise=0.0, first_order=1.0) is not None
    assert find(0.09, gain=0.1, noise=0.0, first_order=1.0) is not None


@pytest.mark.parametrize(("noise", "is_fault"), [(0.002, True), (0.02, False)])
def test_rounding_of_the_tokens_is_none(noise: float, is_fault: bool) -> None:
    assert (find(0.005, gain=0.01, noise=noise) is not None) == is_fault


def test_a_loss_that_is_no_number_is_a_fault() -> None:
    assert find(float("nan"), gain=0.1, noise=0.1) is not None
