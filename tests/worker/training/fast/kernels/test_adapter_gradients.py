"""Both gradients from one look are those of a product each."""

import pytest
import torch

from worker.training.fast.kernels import adapter_gradients
from worker.training.fast.lora_linear import gradients_through_b


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_gradients, "_FEWEST_TOKENS", 1)


@pytest.mark.parametrize(
    ("tokens", "outputs", "rank"), [(300, 130, 16), (256, 64, 4), (5, 700, 24)], ids=["parts", "whole", "odd"]
)
def test_gradients_are_those_of_two_products(
    device: torch.device, tolerance: float, tokens: int, outputs: int, rank: int
) -> None:
    torch.manual_seed(0)
    grad_TO, b_OR = torch.randn(tokens, outputs, device=device), torch.randn(outputs, rank, device=device)
    # Side by side with the products of other layers.
    inner_TS = torch.randn(tokens, rank + 8, device=device)
    found_TS, expected_TS = torch.zeros_like(inner_TS), torch.zeros_like(inner_TS)
    given = (grad_TO, inner_TS[:, 8:], b_OR, 0.5)

    grad_b_OR = adapter_gradients.in_one_look(*given, out_TR=found_TS[:, 8:])

    expected_OR = gradients_through_b(*given, out_TR=expected_TS[:, 8:])
    torch.testing.assert_close(grad_b_OR, expected_OR, rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(found_TS, expected_TS, rtol=tolerance, atol=10 * tolerance)
    assert not found_TS[:, :8].any()


def test_high_ranks_and_few_tokens_are_left_to_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[tuple[int, int]] = []

    def note(
        grad_TO: torch.Tensor, inner_TR: torch.Tensor, *_given: object, **_named: object
    ) -> torch.Tensor:
        left.append((len(grad_TO), inner_TR.shape[1]))
        return inner_TR

    monkeypatch.setattr(adapter_gradients, "gradients_through_b", note)
    monkeypatch.setattr(adapter_gradients, "_FEWEST_TOKENS", 20)
    for tokens, rank in ((30, 64), (10, 8)):
        inner_TR = torch.ones(tokens, rank)
        adapter_gradients.in_one_look(
            torch.ones(tokens, 48), inner_TR, torch.ones(48, rank), 1.0, out_TR=torch.empty_like(inner_TR)
        )

    assert left == [(30, 64), (10, 8)]
