"""LoRA of a mixed batch: each token gets its own adapter's update, and slot 0 none."""

import pytest
import torch

from worker.inference.kernels import lora

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS, INPUTS = 3, 200


@pytest.mark.parametrize(("rank", "widths"), [(16, [130, 40, 64]), (80, [96]), (16, [300])])
@pytest.mark.parametrize("count", [3, 40, 70])
def test_each_token_goes_through_its_own_adapter(rank, widths, count):
    torch.manual_seed(0)
    x_NI = torch.randn(count, INPUTS, device=DEVICE)
    A_MSRI = torch.randn(len(widths), SLOTS, rank, INPUTS, device=DEVICE) / 10
    B_SRO = torch.randn(SLOTS, rank, sum(widths), device=DEVICE) / 10
    slots_N = torch.randint(0, SLOTS + 1, (count,), device=DEVICE)
    y_NO = torch.randn(count, sum(widths), device=DEVICE)
    tiles = torch.tensor(lora.output_tiles(widths), dtype=torch.int32, device=DEVICE)
    expected = y_NO.clone()
    for token, slot in enumerate(slots_N.tolist()):
        if slot:
            inner = A_MSRI[:, slot - 1] @ x_NI[token]
            parts = zip(inner, B_SRO[slot - 1].split(widths, -1), strict=True)
            expected[token] += torch.cat([line @ part for line, part in parts])

    lora.expand(y_NO, lora.shrink(x_NI, slots_N, A_MSRI), slots_N, B_SRO, tiles)

    torch.testing.assert_close(y_NO, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_broken_adapter_does_not_reach_other_tokens():
    A_MSRI = torch.ones(1, 2, 16, INPUTS, device=DEVICE)
    A_MSRI[:, 0] = torch.inf
    B_SRO = torch.ones(2, 16, 32, device=DEVICE)
    y_NO = torch.zeros(2, 32, device=DEVICE)
    tiles = torch.tensor(lora.output_tiles([32]), dtype=torch.int32, device=DEVICE)
    slots_N = torch.tensor([1, 2], device=DEVICE)

    inner_KNC = lora.shrink(torch.ones(2, INPUTS, device=DEVICE), slots_N, A_MSRI)
    lora.expand(y_NO, inner_KNC, slots_N, B_SRO, tiles)

    assert y_NO[1].eq(16 * INPUTS).all()
