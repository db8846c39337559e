"""Log-probabilities in one pass against TRL's: also entropy, accuracy and gradient."""

from typing import Any

import pytest
import torch
from trl.kernels import ChunkedLogProbFunction

from worker.training.optimizations import one_pass_loss
from worker.training.optimizations.one_pass_loss import LogProbFunction

OUTPUTS = ("log_probs", "entropy", "is_top1")


def run(
    function: Any,
    dtype: torch.dtype,
    *,
    tokens: int = 9,
    bias: bool = False,
    trained: bool = False,
    **options: Any,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(tokens, 16, generator=random).to(dtype).requires_grad_()
    weight_VH = torch.randn(50, 16, generator=random).to(dtype).requires_grad_(trained)
    bias_V = torch.randn(50, generator=random).to(dtype) if bias else None
    targets_N = torch.randint(0, 50, (tokens,), generator=random)
    arguments = (1.0, 32, options.get("softcap"), options.get("logit_scale", 1.0), OUTPUTS)
    log_probs, entropy, _, _, is_likeliest = function.apply(
        hidden_NH, weight_VH, bias_V, targets_N, *arguments
    )
    (log_probs * torch.arange(1, tokens + 1)).sum().backward()
    assert hidden_NH.grad is not None
    return [log_probs.detach(), entropy.detach(), is_likeliest], hidden_NH.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile", [50, 200, 1 << 23], ids=["token by token", "some", "whole"])
def test_it_is_trls_loss(tile: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass_loss, "_TILE", tile)
    expected, expected_grad = run(ChunkedLogProbFunction, torch.float32, bias=bias)

    found, grad = run(LogProbFunction(ChunkedLogProbFunction), torch.float32, bias=bias)

    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)
    torch.testing.assert_close(grad, expected_grad)


def test_in_bfloat16_it_is_as_close_to_float32_as_trls() -> None:
    exact, exact_grad = run(ChunkedLogProbFunction, torch.float32)
    trls, trls_grad = run(ChunkedLogProbFunction, torch.bfloat16)
    found, grad = run(LogProbFunction(ChunkedLogProbFunction), torch.bfloat16)

    def error(left: torch.Tensor, right: torch.Tensor) -> float:
        return float((left.float() - right).norm() / right.norm())

    assert error(found[0], exact[0]) <= 1.5 * error(trls[0], exact[0]) < 0.1
    assert error(grad, exact_grad) <= 1.5 * error(trls_grad, exact_grad) < 0.1


@pytest.mark.parametrize(
    "options", [{"trained": True}, {"softcap": 5.0}, {"logit_scale": 0.5}, {"tokens": 0}], ids=str
)
def test_what_is_not_supported_is_computed_by_trl(options: dict[str, Any]) -> None:
    class Counting:
        calls = 0

        @classmethod
        def apply(cls, *arguments: Any) -> Any:
            cls.calls += 1
            return ChunkedLogProbFunction.apply(*arguments)

    run(LogProbFunction(Counting), torch.float32, **options)

    assert Counting.calls == 1


def test_without_gradients_nothing_is_saved() -> None:
    weight_VH = torch.randn(50, 16)

    with torch.no_grad():
        log_probs, *_rest = LogProbFunction(None).apply(
            torch.randn(3, 16), weight_VH, None, torch.tensor([1, 2, 3]), 1.0, 32, None, 1.0, OUTPUTS
        )

    assert log_probs is not None
    assert not log_probs.requires_grad
