"""Exports in FP8: the format, its numbers, and what transformers computes with them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.core.errors.exports import ExportUnsupported
from tests.worker.exports import families
from tests.worker.exports.conftest import MakeAdapter, failed, succeeded
from worker.exports.merged import fp8, linear_layers
from worker.exports.merged.checkpoint import SafetensorsCheckpoint, TensorSpec
from worker.exports.merged.merge import read_shape
from worker.exports.reports import ExportRequest
from worker.exports.run import run

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: FP8 is NOT tested")


def write(family: str, folder: Path) -> tuple[Path, Path]:
    """A tiny model, and the same in FP8."""
    source = families.make_family(family, folder / "source", families.byte_level_tokenizer())
    (target := folder / "fp8").mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    shape = read_shape(source)
    fp8.write_fp8(
        SafetensorsCheckpoint(source),
        target,
        linears=linear_layers.find_linears(shape),
        dtype=torch.bfloat16,
        max_shard_bytes=100_000,
    )
    fp8.write_config(target, shape)
    return source, target


@pytest.mark.parametrize("family", ["tied-llama", "biased-llama", "qwen3", "gemma3", "phi3"])
def test_transformers_reads_exactly_the_rounded_weights(family: str, tmp_path: Path) -> None:
    source, target = write(family, tmp_path)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)

    found = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)

    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([[1, 260, 262, 270]])).logits for model in (original, found)]
    assert (logits[0] - logits[1]).abs().max() < 0.2 * logits[0].abs().max()
    linears, read = linear_layers.find_linears(read_shape(source)), found.state_dict()
    for name, weight in original.state_dict().items():
        if name in linears:
            scales = fp8.find_scales(weight, torch.bfloat16)
            expected = fp8.round_weight(weight, scales).float() * scales.float()
            assert torch.equal(read[name].float(), expected), name
            assert 0 < (expected - weight).norm() / weight.norm() < 0.04
        else:
            assert torch.equal(read[name].float(), weight.bfloat16().float()), name


def test_the_files_are_those_of_compressed_tensors(tmp_path: Path) -> None:
    _source, target = write("llama", tmp_path)

    tensors = {name: one for path in target.glob("*.safetensors") for name, one in load_file(path).items()}
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype is torch.float8_e4m3fn
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].shape == (weight.shape[0], 1)
    assert tensors["lm_head.weight"].dtype is torch.bfloat16
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in tensors.values())
    described = json.loads((target / "config.json").read_text())["quantization_config"]
    assert (described["format"], described["ignore"]) == ("float-quantized", ["lm_head"])


def test_outputs_of_zeros_and_of_huge_weights_stay_finite() -> None:
    weight = torch.tensor([[0.0, 0.0], [3e38, -1e38], [1e-40, 0.0]])

    for dtype in (torch.bfloat16, torch.float16):
        scales = fp8.find_scales(weight[[0, 2]], dtype)
        assert (fp8.round_weight(weight[[0, 2]], scales).float() * scales.float()).isfinite().all()
    scales = fp8.find_scales(weight, torch.bfloat16)
    assert (fp8.round_weight(weight, scales).float() * scales.float()).isfinite().all()


def test_an_export_in_fp8_is_compared_and_described(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter
) -> None:
    ended = succeeded(run(make_request(make_adapter(), format="fp8"), lambda report: None))

    assert ended.agreement.loaded_with == "transformers and compressed-tensors"
    assert 0 < ended.agreement.mean_kl < 0.1
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        f.name for f in ended.files
    }


def test_weights_that_are_no_linear_layers_are_refused_by_name(base: Path) -> None:
    shape = read_shape(base)
    experts = TensorSpec("model.layers.0.mlp.experts.gate_up_proj", (4, 8, 8))

    with pytest.raises(ExportUnsupported, match=r"experts\.gate_up_proj is not"):
        linear_layers.check_linears(shape, [*SafetensorsCheckpoint(base).tensors, experts], "FP8")


def test_without_compressed_tensors_nothing_is_merged(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_layers, "_PACKAGE", "no_such_package")
    request = make_request(make_adapter(), format="fp8")

    ended = failed(run(request, lambda report: None))

    assert (ended.code, ended.hint) == (
        "quantizer_missing",
        "On the worker: pip install compressed-tensors, then retry.",
    )
    assert not request.merged.exists()
