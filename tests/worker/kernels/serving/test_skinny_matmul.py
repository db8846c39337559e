"""Few tokens through a linear layer."""

import pytest
import torch

from tests.worker.kernels.serving.test_four_bit_matmul import assert_rounded
from worker.kernels.serving import skinny_matmul
from worker.kernels.serving.skinny_matmul import DenseTiles


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [2, 8, 9, 16, 17, 32])
@pytest.mark.parametrize("outputs", [70, skinny_matmul._FEW_OUTPUTS + 8])
def test_product_is_exact_but_for_rounding(
    device: torch.device, count: int, outputs: int, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter truncates to bfloat16")
    torch.manual_seed(0)
    x_NI, weight_OI = (random(size, 64, device=device, dtype=dtype) for size in (count, outputs))

    assert skinny_matmul.can_multiply(x_NI, weight_OI)
    y_NO = skinny_matmul.product(x_NI, weight_OI)

    assert_rounded(y_NO, x_NI.double() @ weight_OI.double().T)


@pytest.mark.parametrize(
    "tiles", [DenseTiles(16, 4, 64, 3), DenseTiles(32, 2, 128, 4), DenseTiles(32, 1, 256, 2)], ids=str
)
@pytest.mark.parametrize("inputs", [8, 512, 712])
@pytest.mark.parametrize("has_more", [True, False])
def test_bias_and_residual_are_added_and_tiles_need_not_be_whole(
    device: torch.device, inputs: int, tiles: DenseTiles, has_more: bool
) -> None:
    torch.manual_seed(0)
    x_NI, weight_OI = random(5, inputs, device=device), random(41, inputs, device=device)
    bias_O, plus_NO = (random(*shape, device=device) if has_more else None for shape in ((41,), (5, 41)))

    y_NO = skinny_matmul.product(x_NI, weight_OI, bias_O, plus_NO, tiles=tiles)

    exact_NO = x_NI.double() @ weight_OI.double().T
    assert_rounded(y_NO, exact_NO + bias_O + plus_NO if bias_O is not None else exact_NO)


@pytest.mark.parametrize(
    ("count", "inputs", "dtype"),
    [(skinny_matmul.MAX_TOKENS + 1, 64, torch.float16), (2, 60, torch.float16), (2, 64, torch.float32)],
    ids=["many tokens", "rows that are not aligned", "32 bits"],
)
def test_other_products_are_left_to_torch(count: int, inputs: int, dtype: torch.dtype) -> None:
    x_NI, weight_OI = torch.zeros(count, inputs, dtype=dtype), torch.zeros(8, inputs, dtype=dtype)

    assert not skinny_matmul.can_multiply(x_NI, weight_OI)


def test_views_that_are_not_aligned_are_left_to_torch() -> None:
    flat = torch.zeros(8 * 64 + 1, dtype=torch.float16)
    aligned, shifted = flat[:-1].view(8, 64), flat[1:].view(8, 64)

    assert skinny_matmul.can_multiply(aligned, aligned)
    assert not skinny_matmul.can_multiply(aligned, shifted)
    assert not skinny_matmul.can_multiply(shifted, aligned)
    assert not skinny_matmul.can_multiply(aligned[:, ::2], aligned[:, ::2])


def test_inputs_and_residual_may_be_parts_of_wider_tensors(device: torch.device) -> None:
    torch.manual_seed(0)
    x_NI, plus_NO = random(3, 128, device=device)[:, :64], random(3, 80, device=device)[:, :41]
    weight_OI = random(41, 64, device=device)

    y_NO = skinny_matmul.product(x_NI, weight_OI, None, plus_NO)

    assert_rounded(y_NO, x_NI.double() @ weight_OI.double().T + plus_NO)


@pytest.mark.parametrize("kilobytes", [64, 100])
def test_tiles_that_a_gpu_has_no_room_for_are_left_to_torch(
    kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skinny_matmul, "_shared_memory", lambda device: kilobytes * 1024)
    weight_OI = torch.zeros(8, 64, dtype=torch.float16)

    found = [skinny_matmul.can_multiply(torch.zeros(count, 64).half(), weight_OI) for count in (8, 16, 32)]

    assert found == [True, kilobytes > 64, False]
