"""Folders that PEFT wrote: names, scales, settings that change what an adapter does, and damage."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from worker.models.peft_adapters import (
    AdapterDamaged,
    PeftConfig,
    PeftWeights,
    is_match,
    read_config,
    read_weights,
)

A, B = torch.ones(4, 8), torch.ones(6, 4)
ON_Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


def read(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> PeftWeights:
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, **config}))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return read_weights(folder, read_config(folder))


def test_lora_is_found_by_module_and_the_rest_by_its_name(tmp_path: Path) -> None:
    magnitude, head = torch.ones(6), "base_model.model.lm_head.weight"
    lora = {f"{ON_Q}A.weight": A, f"{ON_Q}B.weight": B, f"{ON_Q}magnitude_vector": magnitude}
    foreign = {"model.layers.0.q_proj.lora_A.weight": A}

    weights = read(tmp_path, {**lora, **foreign, head: B})

    assert weights.others.keys() == {head, *foreign}
    update = weights.updates["model.layers.1.self_attn.q_proj"]
    assert (update.A_RI.shape, update.B_OR.shape, update.scale) == ((4, 8), (6, 4), 2.0)
    assert update.magnitude_O is not None
    assert len(weights.updates) == 1


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [("q_proj", 32), ("layers.1.self_attn.q_proj", 32), ("layers.0.self_attn.q_proj", 8), ("_proj", 8)],
)
@pytest.mark.parametrize("use_rslora", [True, False])
def test_a_module_may_have_an_alpha_of_its_own(pattern: str, alpha: int, use_rslora: bool) -> None:
    config = PeftConfig({"lora_alpha": 8, "alpha_pattern": {pattern: 32}, "use_rslora": use_rslora})

    scale = config.scale("model.layers.1.self_attn.q_proj", 16)

    assert scale == alpha / (math.sqrt(16) if use_rslora else 16)


@pytest.mark.parametrize(
    "key",
    [
        *("q_proj", "attn.q_proj", "self_attn.q_proj", "layers.1.self_attn.q_proj", "proj", "_proj"),
        *(
            "model.layers.1.self_attn.q_proj",
            "^model.layers.1.self_attn.q_proj",
            "^layers.1.self_attn.q_proj",
        ),
        *(".*\\.q_proj", ".*\\.proj", ".*\\.layers.1.self_attn.q_proj"),
        *("^q_proj$", "q_proj$", "self_attn\\.q_proj", "self_attn", "layers.11.self_attn.q_proj"),
    ],
)
def test_a_key_names_the_modules_that_it_names_for_peft(key: str) -> None:
    module = "model.layers.1.self_attn.q_proj"

    assert is_match(key, module) == (get_pattern_key([key], module) == key)


# The names of modules are long enough for these to match for longer than any test may take.
EXPRESSIONS = ["(.+)+x", "((l|a|y|e|r|s|.)*)*x", "layers.*.q_proj", "q_proj|v_proj", "[", "", "q_proj\n"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern", "modules_to_save"])
def test_regular_expressions_are_refused_and_not_compiled(
    tmp_path: Path, setting: str, expression: str
) -> None:
    value: object = [expression] if setting == "modules_to_save" else {expression: 4}

    with pytest.raises(AdapterDamaged, match=f"{setting}: .* is no name of a"):
        read(tmp_path, {f"{ON_Q}A.weight": A, f"{ON_Q}B.weight": B}, **{setting: value})


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "layers_pattern"])
def test_expressions_that_only_training_used_are_not_compiled(tmp_path: Path, setting: str) -> None:
    lora = {f"{ON_Q}A.weight": A, f"{ON_Q}B.weight": B}

    assert len(read(tmp_path, lora, **{setting: "(.+)+x"}).updates) == 1


def test_settings_that_change_what_an_adapter_does_are_named() -> None:
    settings = {"r": 4, "use_dora": True, "bias": "all", "new": 1, "init_lora_weights": "pissa"}
    config = PeftConfig(settings)

    assert config.find_unsupported(()) == ["new", "use_dora", "bias", "init_lora_weights=pissa"]
    assert config.find_unsupported(("bias", "new", "use_dora")) == ["init_lora_weights=pissa"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8]
)
@pytest.mark.parametrize("other", [torch.zeros(0), torch.full((2, 3), torch.finfo(torch.float32).max)])
def test_finite_weights_of_any_type_are_read(tmp_path: Path, dtype: torch.dtype, other: torch.Tensor) -> None:
    found = read(tmp_path, {f"{ON_Q}A.weight": A.to(dtype), f"{ON_Q}B.weight": B.to(dtype), "x": other})

    assert [one.B_OR.dtype for one in found.updates.values()] == [dtype]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{ON_Q}A.weight": A}, "two matrices of one rank"),
        ({f"{ON_Q}A.weight": A, f"{ON_Q}B.weight": A}, "two matrices of one rank"),
        ({f"{ON_Q}A.weight": A, f"{ON_Q}B.weight": B * torch.inf}, "not finite"),
        ({f"{ON_Q}A.weight": A, f"{ON_Q}B.weight": B, "x": A * torch.nan}, "'x' is not finite"),
        (
            {f"{ON_Q}A.weight": A, f"{ON_Q}B.weight": (B * torch.nan).to(torch.float8_e4m3fn)},
            r"B.weight' is not finite",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(AdapterDamaged, match=words):
        read(tmp_path, tensors)
