"""AWQ and GPTQ by llm-compressor itself, in an environment of its own, on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.core.exports.results import Threshold
from app.core.specs.states import ExportPhase
from tests.worker.exports import families
from tests.worker.exports.calibrated.environment import make_environment
from tests.worker.exports.conftest import MakeAdapter, succeeded
from worker.exports import agreement
from worker.exports.calibrated.compressor import Compressor
from worker.exports.reports import Exporting, ExportRequest
from worker.exports.run import run

# The first test waits for the environment.
pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python() -> Path:
    return make_environment()


def compress(python: Path, source: Path, target: Path, **options: Any) -> list[float]:
    """Have llm-compressor round a model, calibrated on random tokens. Returns the progress reported."""
    rows = torch.randint(3, 300, (16, 100)).tolist()
    (path := target.with_suffix(".jsonl")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    request: Any = {
        "model": str(source),
        "output": str(target),
        "rows": str(path),
        "group_size": 32,
        "ignore": ["lm_head"],
        "max_shard_bytes": 100_000,
        **options,
    }
    found: list[float] = []
    Compressor(python).run(request, target.parent, found.append)
    return found


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def find_kl(original: PreTrainedModel, found: PreTrainedModel, rows: torch.Tensor) -> float:
    """The mean KL divergence of the next token, in nats."""
    live, rounded = (model(input_ids=rows).logits.log_softmax(-1) for model in (original, found))
    return float((live.exp() * (live - rounded)).sum(-1).mean())


def round_to_nearest(model: PreTrainedModel) -> PreTrainedModel:
    """The model with each linear layer's weights rounded to the nearest of its group's 16 numbers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            groups = module.weight.data.unflatten(1, (-1, 32))
            scales = groups.abs().amax(-1, keepdim=True) / 7.5
            module.weight.data = ((groups / scales).round().clamp(-8, 7) * scales).flatten(1)
    return model


@pytest.mark.parametrize("format", ["gptq", "awq"])
def test_an_export_is_compared_and_described(
    format: str,
    python: Path,
    dataset: Path,
    make_request: Callable[..., ExportRequest],
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of a random model's nearly equal logits another is soon the largest; their divergence is what counts.
    threshold = Threshold(max_mean_kl=0.005, min_greedy_match=0, must_keep_adapter=True)
    monkeypatch.setattr(agreement, "_CALIBRATED", threshold)
    request = make_request(make_adapter(), format=format, calibration_tokens=2000)
    reports: list[Any] = []

    ended = succeeded(
        run(request.model_copy(update={"dataset": dataset, "llm_compressor": python}), reports.append)
    )

    assert ended.agreement.loaded_with == "transformers and compressed-tensors"
    assert ended.agreement.mean_kl > 0
    assert ended.agreement.threshold == threshold
    assert {file.name for file in ended.files} == {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((ended.folder / "config.json").read_text())
    described = config["quantization_config"]
    assert (described["quant_method"], described["format"]) == ("compressed-tensors", "pack-quantized")
    assert described["ignore"] == ["lm_head"]
    weights = described["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 64, True)
    tensors = load_file(ended.folder / "model.safetensors")
    assert tensors["model.layers.1.mlp.up_proj.weight_packed"].shape == (128, 64 // 8)
    assert tensors["lm_head.weight"].dtype is torch.bfloat16
    assert any(f"4 bits by {format.upper()} (llm-compressor 0.14" in note for note in ended.notes)
    assert "tokens) of the adapter's dataset" in (ended.folder / "README.md").read_text()
    steps = [
        one.progress for one in reports if isinstance(one, Exporting) and one.phase is ExportPhase.CONVERTING
    ]
    assert steps == [0.0, 0.33, 0.67, 1.0]


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("tied-llama", "gptq"),
        ("biased-llama", "awq"),
        ("qwen3", "awq"),
        ("gemma3", "awq"),
        ("phi3", "gptq"),
    ],
)
def test_transformers_reads_what_was_written(family: str, method: str, python: Path, tmp_path: Path) -> None:
    source = families.make_family(family, tmp_path / "source", families.byte_level_tokenizer())

    progress = compress(python, source, tmp_path / "found", method=method)

    assert progress[-1] == 1.0
    original, found = load(source), load(tmp_path / "found")
    rows = torch.randint(3, 300, (4, 60))
    assert 0 < find_kl(original, found, rows) < 0.05
    assert found.config.tie_word_embeddings == original.config.tie_word_embeddings


def test_gptq_is_nearer_to_the_model_than_rounding_to_the_nearest(python: Path, tmp_path: Path) -> None:
    source = families.make_family("llama", tmp_path / "source", families.byte_level_tokenizer())

    compress(python, source, tmp_path / "found", method="gptq")

    rows = torch.randint(3, 300, (8, 60))
    nearest = find_kl(load(source), round_to_nearest(load(source)), rows)
    assert find_kl(load(source), load(tmp_path / "found"), rows) < nearest


def test_a_model_that_can_not_be_read_is_told(python: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="llm-compressor failed: "):
        compress(python, tmp_path / "nothing", tmp_path / "found", method="gptq")
