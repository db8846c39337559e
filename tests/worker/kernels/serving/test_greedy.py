"""Tokens chosen by a kernel are those that PyTorch chooses."""

import pytest
import torch

from worker.kernels.serving import greedy

NO_TOKEN = -1
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocabulary", [50, 8192, 20_000])
def test_the_first_of_the_highest_logits_is_chosen(
    device: torch.device, vocabulary: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    logits_BV = torch.randn(3, vocabulary + 5, device=device).to(dtype)[:, :vocabulary]
    logits_BV[1, vocabulary // 3 :: vocabulary // 3] = 9
    logits_BV[2] -= 100

    chosen_B = greedy.choose(logits_BV, NO_TOKEN)

    expected = [min((row == row.max()).nonzero()).item() for row in logits_BV.float()]
    assert chosen_B.tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, -INF, 2.0), 2),
        ((-INF, -INF, -3.0), 2),
        ((1.0, NAN, 2.0), NO_TOKEN),
        ((1.0, INF, 2.0), NO_TOKEN),
        ((-INF, -INF, -INF), NO_TOKEN),
        ((NAN, NAN, NAN), NO_TOKEN),
    ],
)
def test_a_row_whose_highest_logit_is_not_finite_has_no_token(
    device: torch.device, values: tuple[float, ...], expected: int
) -> None:
    logits_BV = torch.zeros(2, 3, device=device)
    logits_BV[0] = torch.tensor(values)
    logits_BV[1, 1] = 1

    assert greedy.choose(logits_BV, NO_TOKEN).tolist() == [expected, 1]


def test_active_rows_advance(device: torch.device) -> None:
    tokens_R, positions_R = (torch.arange(first, first + 7, device=device) for first in (10, 20))
    sampled_B = torch.tensor([5, 6, NO_TOKEN, 99, 8], device=device)
    active_B = torch.tensor([1, 0, 1, 1, 0], device=device)

    greedy.advance(tokens_R[1:6], positions_R[1:6], sampled_B, active_B, id_count=50)

    assert tokens_R.tolist() == [10, 5, 12, 0, 49, 15, 16]
    assert positions_R.tolist() == [20, 22, 22, 24, 25, 25, 26]
