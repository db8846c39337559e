"""Both paths compute the same logits by kernels and without them."""

import pytest
import torch

from tests.worker.inference.model.test_support import MODELS
from tests.worker.inference.random_models import make_random_model
from worker.decoder.fused_operations import FusedOperations
from worker.decoder.operations import TorchOperations
from worker.inference.model import support
from worker.inference.model.paths import DecoderPath
from worker.kernels.serving import paged_attention

IDS = torch.arange(12)


@pytest.fixture(autouse=True)
def few_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row's keys: the interpreter takes as long for each."""
    monkeypatch.setattr(paged_attention, "_ENOUGH_PROGRAMS", 16)


@pytest.mark.parametrize("kind", ["Llama", "Gemma3", "Olmo2"])
@torch.inference_mode()
def test_kernels_compute_the_same_logits(kind):
    model = make_random_model(kind, **MODELS[kind])
    expected = model(input_ids=IDS[None], use_cache=False).logits[0]
    prepared = support.prepare_model(model)

    assert support._use_kernels(prepared.path, model, IDS, expected)

    _cache, found = support._probe(prepared.path, model, IDS, uses_kernels=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@torch.inference_mode()
def test_kernels_compute_layers_that_give_zeros():
    model = make_random_model("Llama")
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    expected = model(input_ids=IDS[None], use_cache=False).logits[0]

    assert support._use_kernels(support.prepare_model(model).path, model, IDS, expected)


@torch.inference_mode()
def test_kernels_that_are_wrong_are_undone():
    model = make_random_model("Llama")
    expected = model(input_ids=IDS[None], use_cache=False).logits[0]
    prepared = support.prepare_model(model)
    assert isinstance(prepared.path, DecoderPath)

    assert not support._use_kernels(prepared.path, model, IDS, expected.roll(1, 1))

    assert isinstance(prepared.path._operations, TorchOperations)
    assert not any(group.weights._uses_kernels for group in prepared.path.groups)
    with prepared.path.use_kernels():
        assert isinstance(prepared.path._operations, FusedOperations)
