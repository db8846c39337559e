"""Rows concatenated without padding: none reads another; losses and gradients are those of a padded batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.tiny_model import NAME
from tests.worker.training.optimizations.conftest import draw_rows, losses_and_gradients
from worker.training import memory
from worker.training.batches import Collator, PaddingFreeCollator, count_tokens, decoder_inputs, make_dataset
from worker.training.config import CHECKPOINTING
from worker.training.optimizations import varlen_attention

LENGTHS = [5, 1, 9, 3]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_each_row_is_what_attention_makes_of_it_alone(key_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    q_THD, k_TKD, v_TKD = (torch.randn(tokens, heads, 8) for heads in (4, key_heads, key_heads))
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)

    found = varlen_attention.row_by_row(q_THD, k_TKD, v_TKD, starts, max(LENGTHS), scale=0.3, window=window)

    begin = 0
    for length in LENGTHS:
        part = slice(begin, begin + length)
        q, k, v = (heads[part].transpose(0, 1) for heads in (q_THD, k_TKD, v_TKD))
        k, v = (heads.repeat_interleave(4 // key_heads, dim=0) for heads in (k, v))
        places = torch.arange(length)
        back = places[:, None] - places
        seen = (back >= 0) & (back < (window or length))
        scores = (q @ k.transpose(1, 2) * 0.3).masked_fill(~seen, -torch.inf)
        torch.testing.assert_close(found[part], (scores.softmax(-1) @ v).transpose(0, 1))
        begin += length


def test_the_gpus_kernel_is_asked_for_causal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def varlen_attn(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **options: Any
    ) -> torch.Tensor:
        asked.update(options, heads=(q.shape[1], k.shape[1], v.shape[1]), rest=rest)
        return q

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    starts = torch.tensor([0, 2, 6], dtype=torch.int32)
    q_THD, k_TKD = torch.randn(6, 4, 8), torch.randn(6, 2, 8)

    varlen_attention.torch_varlen(q_THD, k_TKD, k_TKD, starts, 4, scale=0.5, window=None)
    assert asked == {"scale": 0.5, "window_size": (-1, 0), "heads": (4, 4, 4), "rest": (starts, starts, 4, 4)}
    varlen_attention.torch_varlen(q_THD, k_TKD, k_TKD, starts, 4, scale=0.5, window=3)
    assert asked["window_size"] == (2, 0)


@pytest.mark.parametrize("packed_length", [None, 12], ids=["rows", "packed"])
@pytest.mark.parametrize("masked", [(), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("checkpoints", [False, True], ids=["saved", "checkpointed"])
def test_losses_and_gradients_are_those_of_a_padded_batch(
    model: PeftModel, checkpoints: bool, masked: tuple[int, ...], packed_length: int | None
) -> None:
    rows = draw_rows([5, 2, 9, 3], masked=masked)
    if checkpoints:
        model.enable_input_require_grads()
        enable = getattr(model, f"{CHECKPOINTING}_enable")
        enable(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}})
    expected = losses_and_gradients(model, Collator(0)(list(make_dataset(rows))))
    varlen_attention.register(varlen_attention.row_by_row)
    model.get_base_model().set_attn_implementation(varlen_attention.NAME)

    joined = PaddingFreeCollator()(list(make_dataset(rows, packed_length=packed_length)))
    found = losses_and_gradients(model, joined)

    assert joined["input_ids"].shape == (1, 19)
    assert len(found) == len(expected) > 20
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_change_in_one_row_leaves_every_other_as_it_was(models_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(models_folder / NAME).eval()
    varlen_attention.register(varlen_attention.row_by_row)
    model.set_attn_implementation(varlen_attention.NAME)
    batch = PaddingFreeCollator()(list(make_dataset(draw_rows([6, 7, 5]))))
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, 6:13] += 1

    with torch.no_grad():
        before, after = (model(**decoder_inputs(one), use_cache=False).logits for one in (batch, changed))

    assert torch.equal(before[:, :6], after[:, :6])
    assert torch.equal(before[:, 13:], after[:, 13:])
    assert not torch.allclose(before[:, 6:13], after[:, 6:13])


def test_a_window_is_the_models_own() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    model = MistralForCausalLM(
        MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2, sliding_window=3)
    ).eval()
    rows = draw_rows([12, 4])
    expected = losses_and_gradients(model, Collator(0)(list(make_dataset(rows))))
    varlen_attention.register(varlen_attention.row_by_row)
    model.set_attn_implementation(varlen_attention.NAME)

    found = losses_and_gradients(model, PaddingFreeCollator()(list(make_dataset(rows))))

    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_padded_batch_is_refused() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
        )
    )
    varlen_attention.register(varlen_attention.row_by_row)
    model.set_attn_implementation(varlen_attention.NAME)

    with pytest.raises(NotImplementedError):
        model(**decoder_inputs(Collator(0)(list(make_dataset(draw_rows([4, 2]))))))
    with pytest.raises(NotImplementedError, match="where rows begin"):
        model(input_ids=torch.tensor([[5, 6]]))


@pytest.mark.parametrize("packed_length", [None, 10], ids=["rows", "packed"])
def test_parts_of_a_joined_batch_are_what_joining_their_sequences_gives(packed_length: int | None) -> None:
    examples = list(make_dataset(draw_rows([5, 2, 9, 3, 4], masked=(1,)), packed_length=packed_length))
    collate = PaddingFreeCollator()
    batch = collate(examples)

    parts = memory.split(batch, 2)

    assert memory.count_rows(batch) == len(examples)
    assert int(count_tokens(batch)) == sum(int(count_tokens(part)) for part in parts) == 23
    for place, part in enumerate(parts):
        expected = collate(examples[2 * place : 2 * place + 2])
        assert {k: torch.as_tensor(v).tolist() for k, v in part.items()} == {
            k: torch.as_tensor(v).tolist() for k, v in expected.items()
        }
