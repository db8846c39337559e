"""Products with 4-bit weights are those with bitsandbytes' dequantized weights, not rounded for one token."""

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit

from worker.kernels.serving import four_bit_vector
from worker.kernels.serving.four_bit_matmul import Tiles, products
from worker.kernels.serving.four_bit_vector import Cut

OUTPUTS = 70


def quantize(
    inputs: int, dtype: torch.dtype, device: torch.device, kind: str = "nf4"
) -> tuple[torch.Tensor, QuantState]:
    torch.manual_seed(0)
    return quantize_4bit(torch.randn(OUTPUTS, inputs, dtype=dtype, device=device), quant_type=kind)


def exact_product(x_NI: torch.Tensor, packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    """With weights of the type of x; of a single token with weights that are not rounded."""
    dtype = torch.float32 if len(x_NI) == 1 else state.dtype
    state = QuantState(state.absmax, state.shape, state.code, state.blocksize, state.quant_type, dtype)
    return x_NI.double() @ dequantize_4bit(packed, state).double().T


def assert_rounded(found_NO: torch.Tensor, exact_NO: torch.Tensor) -> None:
    """The sums of float32 numbers, rounded to the type of the results."""
    eps = max(torch.finfo(found_NO.dtype).eps, 1e-5)
    torch.testing.assert_close(found_NO.double(), exact_NO, atol=1e-4, rtol=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5, 16, 33, 64])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_are_those_of_bitsandbytes(
    device: torch.device, count: int, dtype: torch.dtype, kind: str
) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter truncates to bfloat16")
    packed, state = quantize(256, dtype, device, kind)
    x_NI = torch.randn(count, 256, dtype=dtype, device=device)

    y_NO, _inner = products(x_NI, packed, state.absmax, state.code)

    assert_rounded(y_NO, exact_product(x_NI, packed, state))


@pytest.mark.parametrize("tiles", [Tiles(16, 4, 2, 3), Tiles(32, 1, 1, 2), Tiles(128, 2, 4, 3)], ids=str)
@pytest.mark.parametrize("inputs", [64, 512, 704])
def test_inputs_and_outputs_need_not_be_whole_tiles(device: torch.device, inputs: int, tiles: Tiles) -> None:
    packed, state = quantize(inputs, torch.float16, device)
    x_NI = torch.randn(3, inputs, dtype=torch.float16, device=device)

    y_NO, _inner = products(x_NI, packed, state.absmax, state.code, tiles=tiles)

    assert_rounded(y_NO, exact_product(x_NI, packed, state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "row_count"), [(1, 0), (1, 24), (5, 0), (5, 24), (33, 24)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_plus", [True, False])
def test_bias_and_other_outputs_are_added_and_further_rows_computed(
    device: torch.device, has_plus: bool, has_bias: bool, count: int, row_count: int, dtype: torch.dtype
) -> None:
    packed, state = quantize(704, dtype, device)
    x_NI = torch.randn(count, 704, dtype=dtype, device=device)
    bias_O = torch.randn(OUTPUTS, dtype=dtype, device=device) if has_bias else None
    plus_NO = torch.randn(count, OUTPUTS, dtype=dtype, device=device) if has_plus else None
    rows_CI = torch.randn(row_count, 704, dtype=dtype, device=device)

    y_NO, inner_NC = products(x_NI, packed, state.absmax, state.code, bias_O, plus_NO, rows_CI)

    expected_NO = exact_product(x_NI, packed, state)
    for added in (bias_O, plus_NO):
        expected_NO += added.double() if added is not None else 0
    assert_rounded(y_NO, expected_NO)
    assert_rounded(inner_NC, x_NI.double() @ rows_CI.double().T)


@pytest.mark.parametrize("cut", [Cut(2, 4), Cut(4, 4), Cut(8, 2)], ids=str)
@pytest.mark.parametrize("inputs", [64, 704, 2048])
def test_inputs_and_outputs_of_a_token_need_not_be_whole_warps(
    device: torch.device, inputs: int, cut: Cut
) -> None:
    packed, state = quantize(inputs, torch.float16, device)
    x_1I = torch.randn(1, inputs, dtype=torch.float16, device=device)
    rows_CI = torch.randn(3, inputs, dtype=torch.float16, device=device)

    y_1O, inner_1C = four_bit_vector.product(x_1I, packed, state.absmax, state.code, rows_CI=rows_CI, cut=cut)

    assert_rounded(y_1O, exact_product(x_1I, packed, state))
    assert_rounded(inner_1C, x_1I.double() @ rows_CI.double().T)


def test_a_token_at_an_odd_address_is_multiplied_in_a_tile(device: torch.device) -> None:
    packed, state = quantize(256, torch.float32, device)
    x_1I = torch.randn(1, 257, device=device)[:, 1:]

    y_1O, _inner = products(x_1I, packed, state.absmax, state.code)

    assert not four_bit_vector.can_multiply(x_1I, packed, OUTPUTS)
    assert_rounded(y_1O, exact_product(x_1I, packed, state))
