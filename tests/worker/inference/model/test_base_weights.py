"""Serving computes with exactly the values that QLoRA trained against."""

import pytest
import torch

from app.core.specs.job import QuantizationSpec
from worker.models.base_model import load_for_serving, load_model
from worker.models.device import find_device


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bnb_4bit_quant_type": "fp4"},
        {"bnb_4bit_use_double_quant": True},
        {"bnb_4bit_compute_dtype": "bfloat16"},
    ],
)
def test_weights_for_serving_are_those_of_training_bit_for_bit(models_folder, options):
    device, quantization = find_device(), QuantizationSpec(**options)
    trained = load_model(models_folder / "tiny-llama", quantization, device)

    serving = load_for_serving(models_folder / "tiny-llama", quantization, device).state_dict()

    dtype = serving["model.norm.weight"].dtype
    expected = trained.dequantize(dtype=dtype).state_dict()
    assert serving.keys() == expected.keys()
    assert {tensor.dtype for tensor in serving.values()} == {dtype}
    assert all(torch.equal(serving[name], expected[name]) for name in serving)


def test_rounding_changes_the_weights(models_folder):
    """The test above says nothing without this."""
    device = find_device()
    rounded = load_for_serving(models_folder / "tiny-llama", QuantizationSpec(), device).state_dict()
    whole = load_for_serving(models_folder / "tiny-llama", QuantizationSpec(load_in_4bit=False), device)
    changed = {name for name, tensor in whole.state_dict().items() if not torch.equal(tensor, rounded[name])}

    assert {name.split(".")[-2] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
