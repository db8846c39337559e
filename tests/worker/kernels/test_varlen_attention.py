"""Varlen attention in Triton against PyTorch's, row by row, in float32: outputs and gradients."""

from typing import Any

import pytest
import torch

from worker.kernels import varlen_attention
from worker.training.optimizations.varlen_attention import row_by_row

# Shorter than a tile, as long as one, longer; in the order of a batch.
LENGTHS = [5, 1, 64, 130]


def draw(lengths: list[int], heads: int, key_heads: int, width: int, device: torch.device) -> Any:
    """Queries, keys, values as transformers hands them over, where rows begin, and a gradient."""
    torch.manual_seed(0)
    tokens = sum(lengths)
    drawn = [torch.randn(count, tokens, width, device=device) for count in (heads, key_heads, key_heads)]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    starts = torch.tensor([0, *ends], dtype=torch.int32, device=device)
    inputs = [one.transpose(0, 1).requires_grad_() for one in drawn]
    return inputs, starts, torch.randn(tokens, heads, width, device=device)


@pytest.mark.parametrize("window", [None, 3, 70])
@pytest.mark.parametrize(
    ("heads", "key_heads", "width"), [(2, 2, 16), (4, 2, 24), (2, 1, 32)], ids=["plain", "odd", "shared"]
)
def test_outputs_and_gradients_are_those_of_each_row_alone(
    device: torch.device, tolerance: float, heads: int, key_heads: int, width: int, window: int | None
) -> None:
    inputs, starts, grad = draw(LENGTHS, heads, key_heads, width, device)
    expected = row_by_row(*inputs, starts, max(LENGTHS), scale=0.3, window=window)

    found = varlen_attention.attend(*inputs, starts, scale=0.3, window=window)

    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    gradients = (torch.autograd.grad(one, inputs, grad) for one in (found, expected))
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def test_rows_that_are_not_there_cost_nothing_and_change_nothing(device: torch.device) -> None:
    """A CUDA graph has places for more rows than a batch has: those begin and end at the batch's end."""
    inputs, starts, grad = draw([7, 70], 2, 2, 16, device)
    end = starts[-1:]

    found = varlen_attention.attend(*inputs, torch.cat([starts, end, end, end]), scale=0.25, window=None)

    expected = varlen_attention.attend(*inputs, starts, scale=0.25, window=None)
    assert torch.equal(found, expected)
    gradients = (torch.autograd.grad(one, inputs, grad) for one in (found, expected))
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


def test_gradients_may_come_in_any_layout(device: torch.device) -> None:
    inputs, starts, _grad = draw([9], 2, 2, 16, device)
    output = varlen_attention.attend(*inputs, starts, scale=0.25, window=None)

    # The gradient of a sum is one number everywhere, with strides of 0.
    found = torch.autograd.grad(output.sum(), inputs, retain_graph=True)

    expected = torch.autograd.grad(output, inputs, torch.ones_like(output))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_more_rows_than_are_counted_at_once(device: torch.device, tolerance: float) -> None:
    lengths = [1 + place % 3 for place in range(300)] + [100]
    inputs, starts, _grad = draw(lengths, 1, 1, 16, device)

    found = varlen_attention.attend(*inputs, starts, scale=0.25, window=None)

    expected = row_by_row(*inputs, starts, max(lengths), scale=0.25, window=None)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
