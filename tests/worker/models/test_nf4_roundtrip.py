"""Weights that go through 4 bits in blocks of rows are those that bitsandbytes makes of the whole weight."""

import bitsandbytes
import pytest
import torch
from transformers import BitsAndBytesConfig

from worker.models import nf4_roundtrip
from worker.models.nf4_roundtrip import round_rows, round_weight


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_roundtrip, "_NUMBERS_AT_A_TIME", 1 << 13)


def whole(weight: torch.Tensor, options: BitsAndBytesConfig) -> torch.Tensor:
    """What a layer of bitsandbytes computes with."""
    packed = bitsandbytes.nn.Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=options.bnb_4bit_use_double_quant,
        quant_type=options.bnb_4bit_quant_type,
    ).to(weight.device)
    rounded: torch.Tensor = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state)
    return rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(320, 96), (257, 50), (7, 10)], ids=str)
def test_blocks_of_rows_are_the_whole_weight_bit_for_bit(
    shape: tuple[int, int], kind: str, double: bool, dtype: torch.dtype
) -> None:
    options = BitsAndBytesConfig(bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    blocks = list(round_rows(weight, options, torch.float32))
    rounded = weight.clone()
    round_weight(rounded, options)

    assert len(blocks) == -(-shape[0] // nf4_roundtrip.rows_at_a_time(shape[1]))
    assert torch.equal(torch.cat(blocks), whole(weight.float(), options))
    assert torch.equal(rounded, whole(weight, options))
    assert not torch.equal(rounded, weight)


def test_the_columns_of_a_transposed_weight_are_rounded_as_rows() -> None:
    options = BitsAndBytesConfig(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    weight = torch.randn(96, 320, generator=torch.Generator().manual_seed(0)).T

    assert torch.equal(
        torch.cat(list(round_rows(weight, options, torch.float32))), whole(weight.contiguous(), options)
    )
