"""Both paths compute the same logits by kernels and without them."""

import pytest
import torch

from tests.worker.inference.model.test_support import MODELS
from tests.worker.inference.random_models import make_random_model
from worker.decoder.fused_operations import FusedOperations
from worker.decoder.operations import TorchOperations
from worker.inference.model import support
from worker.inference.model.paths import DecoderPath

IDS = torch.arange(12)


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
