"""The loss of batches with precomputed targets is that of TRL from their labels."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from trl.trainer.utils import add_fused_lm_head

from tests.worker.training.optimizations.conftest import draw_rows
from worker.training.batches import PaddingFreeCollator, make_dataset, model_inputs
from worker.training.optimizations import precomputed_targets, varlen_attention


@pytest.fixture
def scored(model: PeftModel) -> PeftModel:
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    varlen_attention.register(varlen_attention.row_by_row)
    model.get_base_model().set_attn_implementation(varlen_attention.NAME)
    return model


def score(model: PeftModel, batch: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
    model.zero_grad()
    output = model(**model_inputs(batch), use_cache=False, fused_lm_head=True)
    output.log_probs.sum().backward()
    return output, [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("masked", [(), (1,), (0, 1, 2)], ids=["all learned", "one row not", "nothing"])
def test_scores_and_gradients_are_those_by_labels(scored: PeftModel, masked: tuple[int, ...]) -> None:
    rows = list(make_dataset(draw_rows([5, 9, 3], masked=masked)))
    expected, expected_grads = score(scored, PaddingFreeCollator()(rows))

    with precomputed_targets.applied(scored):
        found, grads = score(scored, PaddingFreeCollator(with_targets=True)(rows))

    is_learned = expected.label_mask
    assert int(found.label_mask.sum()) == int(is_learned.sum())
    torch.testing.assert_close(found.loss, expected.loss)
    for name in ("log_probs", "entropy", "is_top1"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name)[is_learned])
    assert len(grads) == len(expected_grads) > 20
    for left, right in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(left, right)


def test_whoever_asks_for_logits_gets_them(scored: PeftModel) -> None:
    batch = PaddingFreeCollator()(list(make_dataset(draw_rows([5, 3]))))
    asked = {name: value for name, value in model_inputs(batch).items() if name != "labels"}

    with precomputed_targets.applied(scored):
        logits = scored(**asked, use_cache=False).logits

    assert torch.equal(logits, scored(**asked, use_cache=False).logits)
