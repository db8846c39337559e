"""The loss is the cross-entropy of the model's own logits at the learned tokens, and so are its gradients."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.kernels import ChunkedLogProbFunction

from benchmarks.families.configs import FAMILIES, Family
from benchmarks.families.tiny_model import make_config, make_tokenizer
from tests.worker.training.optimizations.conftest import draw_rows
from worker.training import loss
from worker.training.batches import Collator, decoder_inputs, make_dataset
from worker.training.loss import LogitShape, TokenScores
from worker.training.model_names import add_names

OUTPUTS = ("log_probs", "entropy", "is_top1")


def make_model(family: Family) -> PreTrainedModel:
    torch.manual_seed(0)
    config = make_config(family, make_tokenizer())
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    add_names(model)
    return model


def shapes_its_loss(family: Family) -> bool:
    config = make_config(family, make_tokenizer()).get_text_config()
    return LogitShape.of(config) != LogitShape() or getattr(config, "output_router_logits", False)


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if family.name in ("Llama 2", "Gemma 3") or shapes_its_loss(family)],
    ids=lambda family: family.name,
)
def test_it_is_the_cross_entropy_of_the_models_own_logits(family: Family) -> None:
    model = make_model(family)
    batch = Collator(0)(list(make_dataset(draw_rows([7, 12, 4], masked=(2,)))))
    weight = model.get_input_embeddings().weight.requires_grad_()
    logits_BLV = model(**decoder_inputs(batch), use_cache=False).logits
    expected = functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    expected_grad = torch.autograd.grad(expected, weight)[0]

    scores = loss.score(model, batch)

    torch.testing.assert_close(-scores.log_prob_sum, expected)
    assert len(scores.log_probs_N) == 6 + 11
    grad = torch.autograd.grad(-scores.log_prob_sum, weight)[0]
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)


def test_a_mixtures_balance_is_that_of_its_own_loss() -> None:
    [family] = [family for family in FAMILIES if family.name == "Qwen 3 MoE"]
    model = make_model(family)
    model.config.output_router_logits = True
    batch = Collator(0)(list(make_dataset(draw_rows([7, 12, 4]))))
    own = model(**decoder_inputs(batch), labels=batch["labels"], use_cache=False)

    scores = loss.score(model, batch)

    assert scores.balancing is not None
    found = -scores.log_prob_sum / len(scores.log_probs_N) + scores.balancing
    torch.testing.assert_close(found, own.loss)


def run(
    dtype: torch.dtype,
    *,
    tokens: int = 9,
    bias: bool = False,
    trained: bool = False,
    shape: LogitShape | None = None,
    certainty: float = 0.0,
    is_trl: bool = False,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(scores, gradients), by TRL's function or ours. `certainty`: what is added to the target's logit."""
    random = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(tokens, 16, generator=random)
    weight_VH = torch.randn(50, 16, generator=random)
    targets_N = torch.randint(0, 50, (tokens,), generator=random)
    hidden_NH = hidden_NH + certainty * functional.normalize(weight_VH[targets_N])
    bias_V = torch.randn(50, generator=random).to(dtype).requires_grad_(trained) if bias else None
    hidden_NH, weight_VH = hidden_NH.to(dtype).requires_grad_(), weight_VH.to(dtype).requires_grad_(trained)
    shape = shape or LogitShape()
    arguments = (hidden_NH, weight_VH, bias_V, targets_N)
    if is_trl:
        log_probs_N, entropy_N, _, _, is_likeliest_N = ChunkedLogProbFunction.apply(
            *arguments, 1.0, 32, shape.softcap, shape.scale, OUTPUTS
        )
        scores = TokenScores(log_probs_N.sum(), log_probs_N, entropy_N, is_likeliest_N)
    else:
        scores = loss.score_hidden_states(*arguments, shape)
    (scores.log_prob_sum * 0.3).backward()
    grads = [one.grad for one in (hidden_NH, weight_VH, bias_V) if one is not None and one.grad is not None]
    return [scores.log_probs_N.detach(), scores.entropy_N.detach(), scores.is_likeliest_N], grads


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(0.5), LogitShape(2.0, 3.0)], ids=str)
@pytest.mark.parametrize("logits", [50, 200, 1 << 23], ids=["token by token", "some", "whole"])
def test_it_is_trls_loss(
    logits: int, shape: LogitShape, bias: bool, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_CHUNK_LOGITS_ON_CPU", logits)
    options: dict[str, Any] = {"bias": bias, "trained": trained, "shape": shape}
    expected = run(torch.float32, is_trl=True, **options)

    found = run(torch.float32, **options)

    assert len(found[1]) == 1 + trained * (1 + bias)
    for left, right in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("certainty", [0.0, 4.0], ids=["unsure", "almost certain"])
def test_in_bfloat16_it_is_as_near_to_float32_as_trls(certainty: float) -> None:
    exact, trls, found = (
        run(dtype, is_trl=is_trl, trained=True, certainty=certainty, tokens=200)
        for dtype, is_trl in ((torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False))
    )

    def error(left: torch.Tensor, right: torch.Tensor) -> float:
        return float((left.float() - right).norm() / right.norm())

    assert error(found[0][0], exact[0][0]) <= 1.5 * error(trls[0][0], exact[0][0]) < 0.1
    for grad, trls_grad, exact_grad in zip(found[1], trls[1], exact[1], strict=True):
        assert error(grad, exact_grad) <= 1.5 * error(trls_grad, exact_grad) < 0.1


def test_a_batch_in_which_nothing_is_learned_has_a_loss_of_zero() -> None:
    model = make_model(FAMILIES[0])
    weight = model.get_input_embeddings().weight.requires_grad_()
    batch = Collator(0)(list(make_dataset(draw_rows([7, 4], masked=(0, 1)))))

    scores = loss.score(model, batch)

    scores.log_prob_sum.backward()
    assert scores.log_prob_sum == 0
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(0.5, 30.0)], ids=["plain", "shaped"])
def test_each_log_probability_has_a_gradient_of_its_own(
    shape: LogitShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As preferences need it: answers have different factors, of the output layer too where it is trained."""
    monkeypatch.setattr(loss, "_CHUNK_LOGITS_ON_CPU", 4 * 32)  # several chunks
    torch.manual_seed(0)
    hidden_NH, weight_VH, bias_V = (
        torch.randn(*size, requires_grad=True) for size in ((9, 16), (32, 16), (32,))
    )
    targets_N, factors_N = torch.randint(32, (9,)), torch.randn(9)
    logits_NV = functional.linear(hidden_NH, weight_VH, bias_V) * shape.scale
    if shape.softcap:
        logits_NV = torch.tanh(logits_NV / shape.softcap) * shape.softcap
    expected_N = logits_NV.log_softmax(1).gather(1, targets_N[:, None])[:, 0]
    inputs = (hidden_NH, weight_VH, bias_V)
    expected = torch.autograd.grad((factors_N * expected_N).sum() + 0.5 * expected_N.sum(), inputs)

    scores = loss.score_hidden_states(*inputs, targets_N, shape)

    total = (factors_N * scores.log_probs_N).sum() + 0.5 * scores.log_prob_sum
    for found, wanted in zip(torch.autograd.grad(total, inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
