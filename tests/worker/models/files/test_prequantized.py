"""Base models whose files hold quantized weights: dequantized as the format says, or refused by its name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from app.core.errors.base_models import ModelUnreadable
from app.core.specs.job import QuantizationSpec
from tests.tiny_model import NAME
from worker.models.base_model import load_for_serving, load_model
from worker.models.device import find_device
from worker.models.files import prequantized

BLOCK = 64
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
IN_4BIT, IN_FULL = QuantizationSpec(), QuantizationSpec(load_in_4bit=False)
IDS = torch.arange(12)[None]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def write_fp8(folder: Path, plain: Path) -> None:
    """Quantize a model's linear layers to fp8 in blocks; `plain` gets the dequantized model."""
    tensors = load_file(folder / "model.safetensors")
    stored, dequantized = dict(tensors), dict(tensors)
    for name, weight_OI in tensors.items():
        if "_proj." in name:
            out, inputs = weight_OI.shape
            blocks = weight_OI.reshape(-1, min(out, BLOCK), inputs // BLOCK, BLOCK)
            scales = blocks.abs().amax((1, 3)) / 448
            numbers = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            dequantized[name] = (numbers.float() * scales[:, None, :, None]).reshape(out, inputs)
            stored[name] = numbers.reshape(out, inputs)
            stored[f"{name}_scale_inv"] = scales
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder, plain)
    save_file(dequantized, plain / "model.safetensors", metadata={"format": "pt"})
    write_settings(
        folder, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    )


def write_mxfp4(folder: Path, plain: Path) -> None:
    """A tiny gpt-oss whose experts are in mxfp4 (OCP Microscaling Formats 1.0); `plain` gets their values."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    GptOssForCausalLM(GptOssConfig(**sizes, **heads, **experts, pad_token_id=0)).save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    stored, dequantized = {}, dict(tensors)
    for name, weight in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            count, inputs, outputs = weight.shape
            numbers = torch.randint(0, 16, (count, outputs, inputs // 32, 32), dtype=torch.uint8)
            scales = torch.randint(118, 122, (count, outputs, inputs // 32), dtype=torch.uint8)
            values = FP4[numbers.long()] * 2.0 ** (scales.float() - 127)[..., None]
            dequantized[name] = values.reshape(count, outputs, inputs).transpose(1, 2).contiguous()
            stored[f"{name}_blocks"] = numbers[..., 0::2] | numbers[..., 1::2] << 4
            stored[f"{name}_scales"] = scales
        else:
            stored[name] = weight
    save_file(dequantized, plain / "model.safetensors", metadata={"format": "pt"})
    folder.mkdir()
    shutil.copy(plain / "config.json", folder)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    write_settings(folder, {"quant_method": "mxfp4", "modules_to_not_convert": skipped})


@pytest.fixture
def folders(request: pytest.FixtureRequest, models_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A quantized model, and one with the values that its weights stand for."""
    folder, plain = tmp_path / "quantized", tmp_path / "plain"
    if request.param == "fp8":
        config = LlamaConfig.from_pretrained(models_folder / NAME, num_key_value_heads=4)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        write_fp8(folder, plain)
    else:
        write_mxfp4(folder, plain)
    return folder, plain


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("folders", ["fp8", "mxfp4"], indirect=True)
@pytest.mark.parametrize("quantization", [IN_4BIT, IN_FULL])
@pytest.mark.parametrize("load", [load_model, load_for_serving])
def test_it_loads_as_the_model_of_its_values(
    folders: tuple[Path, Path], quantization: QuantizationSpec, load: Any
) -> None:
    found, expected = (load(folder, quantization, find_device()) for folder in folders)

    assert torch.equal(logits(found), logits(expected))
    types = [{name: weight.dtype for name, weight in one.named_parameters()} for one in (found, expected)]
    assert types[0] == types[1]
    kinds = [{name: type(module) for name, module in one.named_modules()} for one in (found, expected)]
    assert kinds[0] == kinds[1]
    assert any(kind is Linear4bit for kind in kinds[0].values()) == (
        load is load_model and quantization.load_in_4bit
    )


def test_weights_that_were_dequantized_to_bfloat16_get_the_type_of_the_model() -> None:
    """transformers 5.17 leaves those of mxfp4 so, and 5.23 does not."""
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=320)
    )
    layer = model.model.layers[0].mlp.up_proj
    layer.to(torch.bfloat16)

    prequantized.cast_bfloat16(model, torch.float16)

    assert layer.weight.dtype == torch.float16
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("quantization", [IN_4BIT, IN_FULL])
def test_4_bits_of_bitsandbytes_are_used_as_they_are(
    models_folder: Path, tmp_path: Path, quantization: QuantizationSpec
) -> None:
    original = load_model(models_folder / NAME, IN_4BIT, find_device())
    original.save_pretrained(tmp_path / "stored")

    model = load_model(tmp_path / "stored", quantization, find_device())

    layer = model.model.layers[0].self_attn.q_proj
    assert (type(layer) is Linear4bit) == quantization.load_in_4bit
    assert torch.allclose(logits(model), logits(original), atol=1e-5)
    if quantization.load_in_4bit:
        assert layer.compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bits"),
    ],
)
def test_other_formats_are_refused_by_name_before_the_weights_are_read(
    models_folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    folder = Path(shutil.copytree(models_folder / NAME, tmp_path / NAME))
    write_settings(folder, settings)
    (folder / "model.safetensors").unlink()

    with pytest.raises(ModelUnreadable) as caught:
        load_model(folder, IN_4BIT, find_device())

    assert f"quantized already ({words})" in caught.value.message
    assert "quantized from" in (caught.value.hint or "")


def test_what_happens_to_the_weights_is_said() -> None:
    config = LlamaConfig()
    assert prequantized.describe(config, load_in_4bit=True) is None
    config.quantization_config = {"quant_method": "fp8"}

    assert prequantized.describe(config, load_in_4bit=True) == (
        "The base model's weights are in fp8; they are dequantized when they are loaded and then quantized "
        "to 4 bits."
    )
