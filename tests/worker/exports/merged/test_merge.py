"""A merged model computes what PEFT computes on the live base model, for every kind of adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.core.errors.base_models import BaseModelChanged
from app.core.errors.exports import ExportUnsupported
from app.core.exports.results import Agreement, Threshold
from app.core.specs.job import QuantizationSpec
from tests.worker.exports.conftest import PROMPTS, MakeAdapter
from worker.exports import verification
from worker.exports.merged.adapter_weights import read_adapter
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.merge import Merger, merge, read_shape
from worker.exports.merged.model_files import write_companion_files
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files import description

ANY = Threshold(max_mean_kl=1.0, min_greedy_match=0.0, must_keep_adapter=False)
UNQUANTIZED = QuantizationSpec(load_in_4bit=False)


def merge_into(folder: Path, base: Path, adapter: Path, *, in_4bit: bool = False, **options: Any) -> Path:
    quantization = base_model.quantization_config(QuantizationSpec(), find_device()) if in_4bit else None
    merger = Merger(SafetensorsCheckpoint(base), read_shape(base), read_adapter(adapter), quantization)
    folder.mkdir()
    settings: dict[str, Any] = {"dtype": torch.float32, "max_shard_bytes": 10**9, **options}
    merge(merger, folder, **settings)
    write_companion_files(folder, base=base, adapter=adapter, dtype=settings["dtype"], is_tied=merger.is_tied)
    return folder


def agree(folder: Path, base: Path, adapter: Path, quantization: QuantizationSpec = UNQUANTIZED) -> Agreement:
    live = verification.run_live(base, adapter, quantization, PROMPTS, elements=1)
    return verification.compare(
        live, lambda dtype: verification.load_safetensors(folder, dtype), ANY, loaded_with="transformers"
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"down_proj": 2}},
    ],
    ids=str,
)
@pytest.mark.parametrize("in_4bit", [False, True])
def test_a_merged_model_answers_as_the_live_adapter(
    options: dict[str, Any], in_4bit: bool, base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(**options)
    merged = merge_into(tmp_path / "merged", base, adapter, in_4bit=in_4bit)

    found = agree(merged, base, adapter, QuantizationSpec() if in_4bit else UNQUANTIZED)

    assert found.max_abs_logit_difference < 1e-4
    assert found.adapter_kl > 1e-3
    assert found.answers_equal == 1


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "layers_pattern"])
def test_a_strangers_regular_expression_is_not_compiled(
    setting: str, base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter()
    merged = merge_into(tmp_path / "merged", base, adapter)
    expected = agree(merged, base, adapter)
    path = adapter / "adapter_config.json"
    # To match the names of the model's modules with it would take longer than any test may.
    changes = {setting: "(.+)+x"} | ({"layers_to_transform": [0]} if setting == "layers_pattern" else {})
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    assert agree(merged, base, adapter) == expected


@pytest.fixture
def odd_base(base: Path, tmp_path: Path) -> Path:
    """A base model with tied embeddings and biases."""
    folder = tmp_path / "odd-base"
    config = LlamaConfig.from_pretrained(base)
    config.tie_word_embeddings, config.attention_bias = True, True
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data += torch.randn_like(parameter)
    model.save_pretrained(folder)
    description.load_tokenizer(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"bias": "lora_only"}], ids=str
)
def test_tied_embeddings_and_biases_are_merged(
    options: dict[str, Any], odd_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(on=odd_base, **options)
    merged = merge_into(tmp_path / "merged", odd_base, adapter)

    assert agree(merged, odd_base, adapter).max_abs_logit_difference < 1e-4


def test_tied_embeddings_are_written_once(odd_base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    merged = merge_into(tmp_path / "merged", odd_base, make_adapter(on=odd_base))

    assert "lm_head.weight" not in SafetensorsCheckpoint(merged)


def test_shards_hold_what_one_file_holds(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter()
    whole = load_file(merge_into(tmp_path / "whole", base, adapter) / "model.safetensors")
    sharded = merge_into(tmp_path / "sharded", base, adapter, max_shard_bytes=100_000)

    model = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32).state_dict()

    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 2
    assert all(torch.equal(model[name], tensor) for name, tensor in whole.items())


def test_the_original_base_is_another_model_than_the_rounded_one(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter()
    merged = merge_into(tmp_path / "merged", base, adapter)

    assert agree(merged, base, adapter, QuantizationSpec()).max_abs_logit_difference > 1e-3


def test_a_base_model_of_another_shape_is_refused(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter()
    config = LlamaConfig.from_pretrained(base)
    config.intermediate_size = 96
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")

    with pytest.raises(BaseModelChanged, match=r"down_proj is 64 by 96 there, and 64 by 128 in the adapter"):
        merge_into(tmp_path / "merged", tmp_path / "other", adapter)


def test_an_adapter_on_the_output_layer_is_refused(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(target_modules=["lm_head"])

    with pytest.raises(ExportUnsupported, match="output layer"):
        merge_into(tmp_path / "merged", base, adapter)


def test_weights_that_float16_can_not_hold_are_refused(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(lora_alpha=10**7)

    with pytest.raises(ExportUnsupported, match="float16"):
        merge_into(tmp_path / "merged", base, adapter, dtype=torch.float16)
