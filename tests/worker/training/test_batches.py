"""Padding, packing and the order of rows."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.core.errors import InvalidRequest
from app.core.specs.job import QuantizationSpec
from tests.factories import make_spec
from tests.tiny_model import NAME
from worker.models.base_model import load_model
from worker.models.device import find_device
from worker.planning.packing import refuse_leaking_model
from worker.templates.token_rows import IGNORED, TokenRow
from worker.training import adapter
from worker.training.batches import Collator, EpochSampler, count_tokens, make_dataset

ROWS = [
    TokenRow(line, ids, [IGNORED, *ids[1:]]) for line, ids in enumerate([[5, 6, 2], [7, 8, 9, 2], [4, 2]])
]


@pytest.fixture
def model(models_folder: Path) -> PeftModel:
    spec = make_spec(lora={"r": 4})
    return adapter.attach(load_model(models_folder / NAME, spec.quantization, find_device()), spec)


def test_an_end_token_that_is_also_the_pad_token_is_still_learned() -> None:
    batch = Collator(pad_token_id=2)(list(make_dataset(ROWS)))

    assert batch["labels"].tolist() == [[-100, 6, 2, -100], [-100, 8, 9, 2], [-100, 2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert count_tokens(batch) == 9


def test_packed_rows_begin_at_position_0_again() -> None:
    dataset = make_dataset(ROWS, packed_length=6)
    batch = Collator(pad_token_id=2)(list(dataset))

    assert batch["input_ids"].tolist() == [[7, 8, 9, 2, 4, 2], [5, 6, 2, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 8, 9, 2, -100, 2], [-100, 6, 2, -100, -100, -100]]
    assert count_tokens(batch) == 9


def test_packed_rows_are_read_as_they_are_alone(models_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(models_folder / NAME).eval()
    packed = Collator(pad_token_id=2)(list(make_dataset(ROWS, packed_length=6)))
    with torch.no_grad():
        packed_logits = model(
            input_ids=packed["input_ids"], position_ids=packed["position_ids"], use_cache=False
        ).logits
        alone = model(input_ids=torch.tensor([[4, 2]])).logits

    torch.testing.assert_close(packed_logits[0, 4:], alone[0])


def test_a_model_that_keeps_packed_rows_apart_may_pack(model: PeftModel) -> None:
    refuse_leaking_model(model)


def test_a_model_that_lets_packed_rows_leak_is_refused(
    model: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.forward
    monkeypatch.setattr(model, "forward", lambda position_ids, **inputs: whole(**inputs))

    with pytest.raises(InvalidRequest, match="would read each other"):
        refuse_leaking_model(model)


def test_an_evaluation_leaves_4_bit_weights_trainable(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes repacks them on a CPU with AVX512-BF16, and then their gradients are wrong."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_model(models_folder / NAME, QuantizationSpec(), find_device())
    embeddings = model.get_input_embeddings()(torch.tensor([[4, 5, 6]], device=model.device))

    def gradient() -> torch.Tensor:
        inputs = embeddings.detach().clone().requires_grad_()
        model(inputs_embeds=inputs).logits.sum().backward()
        assert inputs.grad is not None
        return inputs.grad

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(inputs_embeds=embeddings.detach())
    model.train()

    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("group_size", [None, 2])
def test_the_order_depends_on_seed_and_epoch_alone(group_size: int | None) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(1)
        sampler = EpochSampler([3, 9, 4, 8, 5, 7], seed=seed, group_size=group_size)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(1, 0)) == [0, 1, 2, 3, 4, 5]
    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in range(4)}) > 4
