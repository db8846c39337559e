"""LoRA of a mixed batch: each token gets its own adapter's update, and slot 0 none."""

import pytest
import torch

from worker.kernels.serving import batched_lora

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("slots", "rank", "widths"), [(3, 16, [130, 40, 64]), (3, 80, [96]), (9, 16, [300]), (1, 32, [16, 16])]
)
@pytest.mark.parametrize("count", [1, 3, 20, 70])
@pytest.mark.parametrize("has_plus", [True, False])
def test_each_token_goes_through_its_own_adapter(slots, rank, widths, count, has_plus):
    torch.manual_seed(0)
    inner_NSMR = torch.randn(count, slots, len(widths), rank, device=DEVICE)
    B_SRO = torch.randn(slots, rank, sum(widths), device=DEVICE) / 10
    slots_N = torch.randint(0, slots + 1, (count,), device=DEVICE)
    # As a product with a tail leaves it: rows of outputs and columns in one.
    both = torch.cat([torch.randn(count, sum(widths), device=DEVICE), inner_NSMR.flatten(1)], 1)
    y_NO, inner_NC = both.split([sum(widths), len(widths) * slots * rank], 1)
    plus_NO = torch.randn(count, sum(widths), device=DEVICE) if has_plus else None
    expected = y_NO + (plus_NO if has_plus else 0)
    for token, slot in enumerate(slots_N.tolist()):
        if slot:
            parts = zip(inner_NSMR[token, slot - 1], B_SRO[slot - 1].split(widths, -1), strict=True)
            expected[token] += torch.cat([line @ part for line, part in parts])

    out_NO = batched_lora.expand(y_NO, inner_NC, slots_N, B_SRO, tuple(widths), plus_NO)

    torch.testing.assert_close(out_NO, expected, atol=1e-4, rtol=1e-4)


def test_broken_adapter_does_not_reach_other_tokens():
    inner_NC = torch.ones(2, 2 * 16, device=DEVICE)
    inner_NC[:, :16] = torch.nan
    B_SRO = torch.ones(2, 16, 32, device=DEVICE)
    slots_N = torch.tensor([1, 2], device=DEVICE)

    out_NO = batched_lora.expand(torch.zeros(2, 32, device=DEVICE), inner_NC, slots_N, B_SRO, (32,))

    assert out_NO[0].isnan().all()
    assert out_NO[1].eq(16).all()


@pytest.mark.parametrize("count", [1, 3])
def test_columns_of_the_first_slots_are_enough(count):
    torch.manual_seed(0)
    widths, rank = (48, 16), 16
    inner_NC = torch.randn(count, 4 * len(widths) * rank, device=DEVICE)
    B_SRO = torch.randn(4, rank, sum(widths), device=DEVICE)
    slots_N = torch.tensor([2, 0, 1][:count], device=DEVICE)
    y_NO = torch.randn(count, sum(widths), device=DEVICE)

    first_NC = inner_NC[:, : 2 * len(widths) * rank]

    torch.testing.assert_close(
        batched_lora.expand(y_NO, first_NC, slots_N, B_SRO, widths),
        batched_lora.expand(y_NO, inner_NC, slots_N, B_SRO, widths),
    )
