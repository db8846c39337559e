"""Weights dequantized by one kernel are bitsandbytes' own, to the last bit."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from worker.kernels.dequantize import dequantize, dequantize_with_a, dequantize_with_b
from worker.models.frozen_weights import AdapterColumns


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True], ids=["once", "double"])
@pytest.mark.parametrize("shape", [(48, 256), (3, 64), (5, 7)], ids=["many blocks", "few", "a part of one"])
def test_a_weight_is_what_bitsandbytes_makes_of_it(
    device: torch.device, shape: tuple[int, int], double: bool, kind: str
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, device=device) * 0.02 + 0.01
    packed, state = quantize_4bit(weight, quant_type=kind, compress_statistics=double)

    found = dequantize(packed, state)

    assert found.shape == shape
    assert torch.equal(found, dequantize_4bit(packed, state))


@pytest.mark.parametrize("double", [False, True], ids=["once", "double"])
@pytest.mark.parametrize(("rank", "first", "count"), [(8, 16, 24), (16, 0, 16), (3, 0, 8)])
def test_b_is_to_the_right_of_the_weight_among_zeros(
    device: torch.device, rank: int, first: int, count: int, double: bool
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(70, 128, device=device)
    b_OR = torch.randn(70, rank, device=device)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)

    found = dequantize_with_b(packed, state, AdapterColumns(b_OR, first, count))

    assert torch.equal(found[:, :128], dequantize_4bit(packed, state))
    expected = torch.zeros(70, count, device=device)
    expected[:, first : first + rank] = b_OR
    assert torch.equal(found[:, 128:], expected)


def test_a_is_below_the_weight(device: torch.device) -> None:
    torch.manual_seed(0)
    packed, state = quantize_4bit(torch.randn(70, 128, device=device), quant_type="nf4")
    a_SI = torch.randn(8, 128, device=device)

    found = dequantize_with_a(packed, state, a_SI)

    assert torch.equal(found, torch.cat([dequantize_4bit(packed, state), a_SI]))
