"""Products with 4-bit weights are those with bitsandbytes' dequantized weights."""

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit

from worker.kernels.serving.four_bit_matmul import Tiles, products

OUTPUTS = 70


def quantize(
    inputs: int, dtype: torch.dtype, device: torch.device, kind: str = "nf4"
) -> tuple[torch.Tensor, QuantState]:
    torch.manual_seed(0)
    return quantize_4bit(torch.randn(OUTPUTS, inputs, dtype=dtype, device=device), quant_type=kind)


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

    assert_rounded(y_NO, x_NI.double() @ dequantize_4bit(packed, state).double().T)


@pytest.mark.parametrize("tiles", [Tiles(16, 4, 2, 3), Tiles(32, 1, 1, 2), Tiles(128, 2, 4, 3)], ids=str)
@pytest.mark.parametrize("inputs", [64, 512, 704])
def test_inputs_and_outputs_need_not_be_whole_tiles(device: torch.device, inputs: int, tiles: Tiles) -> None:
    packed, state = quantize(inputs, torch.float16, device)
    x_NI = torch.randn(3, inputs, dtype=torch.float16, device=device)

    y_NO, _inner = products(x_NI, packed, state.absmax, state.code, tiles=tiles)

    assert_rounded(y_NO, x_NI.double() @ dequantize_4bit(packed, state).double().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "row_count"), [(5, 0), (5, 24), (33, 24)])
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

    expected_NO = x_NI.double() @ dequantize_4bit(packed, state).double().T
    for added in (bias_O, plus_NO):
        expected_NO += added.double() if added is not None else 0
    assert_rounded(y_NO, expected_NO)
    assert_rounded(inner_NC, x_NI.double() @ rows_CI.double().T)
