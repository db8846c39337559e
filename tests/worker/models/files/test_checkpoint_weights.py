"""Files that lack weights of a base model, or hold others, are refused by name: loaded, and before."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    Llama4Config,
    Llama4ForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedModel,
)

from app.core.errors.base_models import ModelUnreadable
from app.core.specs.job import QuantizationSpec
from benchmarks.families.configs import FAMILIES, Family, find_families
from benchmarks.families.tiny_model import write_model
from tests.tiny_model import NAME
from worker.models.base_model import load_model
from worker.models.device import find_device
from worker.models.files.checkpoint_weights import check_stored
from worker.models.files.description import build_empty

Weights = dict[str, torch.Tensor]
IN_4_BITS, UNQUANTIZED = QuantizationSpec(), QuantizationSpec(load_in_4bit=False)


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models_folder / NAME, tmp_path / NAME))


def change(folder: Path, how: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    how(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusals(folder: Path) -> list[str]:
    """What preflight says, then what a load in 4 bits and an unquantized one say."""
    messages = []
    for use in (
        lambda: check_stored(folder, build_empty(folder)),
        lambda: load_model(folder, IN_4_BITS, find_device()),
        lambda: load_model(folder, UNQUANTIZED, find_device()),
    ):
        with pytest.raises(ModelUnreadable) as caught:
            use()
        messages.append(caught.value.message)
    return messages


def test_a_weight_that_is_missing_is_named(folder: Path) -> None:
    change(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))

    assert set(refusals(folder)) == {
        f"The files of the base model {NAME!r} do not fit its architecture: they lack "
        "model.layers.1.mlp.up_proj.weight."
    }


def test_a_classifier_lacks_the_output_layer(folder: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).save_pretrained(folder)

    for message in refusals(folder):
        assert "they lack lm_head.weight" in message
        assert "they hold weights that it does not have: score.weight" in message


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"]
)
def test_a_weight_of_another_shape_is_named_with_both(name: str, folder: Path) -> None:
    """Also one that is held in 4 bits, whose shape transformers does not compare."""
    right = list(load_file(folder / "model.safetensors")[name].shape)
    change(folder, lambda weights: weights.update({name: torch.zeros(7, *right[1:])}))

    assert set(refusals(folder)) == {
        f"The files of the base model {NAME!r} do not fit its architecture: they have other shapes of "
        f"{name} ({[7, *right[1:]]} in place of {right})."
    }


def test_a_transposed_layer_in_4_bits_has_its_shape(tmp_path: Path) -> None:
    """GPT-2's: (inputs, outputs) in its files, (outputs, inputs) in 4 bits."""
    write_model(find_families(["gpt2"])[0], tmp_path / NAME)
    load_model(tmp_path / NAME, IN_4_BITS, find_device())
    name = "transformer.h.0.mlp.c_fc.weight"
    change(tmp_path / NAME, lambda weights: weights.update({name: weights[name].T.contiguous()}))

    with pytest.raises(ModelUnreadable, match="other shapes of " + name):
        load_model(tmp_path / NAME, IN_4_BITS, find_device())


def test_layers_beyond_those_of_the_config_are_named(folder: Path) -> None:
    names = ("model.layers.2.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias")
    change(folder, lambda weights: weights.update({name: torch.zeros(64) for name in names}))

    for message in refusals(folder):
        assert f"weights that it does not have: {names[1]}, {names[0]}." in message


def test_what_the_architecture_passes_over_is_no_fault(folder: Path) -> None:
    change(
        folder,
        lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
    )

    check_stored(folder, build_empty(folder))
    load_model(folder, UNQUANTIZED, find_device())


@pytest.mark.parametrize(
    ("family", "constants"),
    [
        ("gpt2", ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias")),
        ("gpt_neo", ("transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias")),
        ("gptj", ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias")),
        ("codegen", ("transformer.h.0.attn.causal_mask",)),
        ("gpt_neox", ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq")),
    ],
)
def test_masks_that_older_versions_saved_are_no_fault(
    family: str, constants: tuple[str, ...], tmp_path: Path
) -> None:
    write_model(find_families([family])[0], tmp_path)
    change(tmp_path, lambda weights: weights.update({name: torch.ones(1, 1, 8, 8) for name in constants}))

    check_stored(tmp_path, build_empty(tmp_path))
    load_model(tmp_path, UNQUANTIZED, find_device())


def test_the_oldest_gpt2_has_masks_under_names_without_a_prefix(tmp_path: Path) -> None:
    write_model(find_families(["gpt2"])[0], tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    save_file({**old, "h.0.attn.bias": torch.ones(8, 8)}, tmp_path / "model.safetensors", {"format": "pt"})

    check_stored(tmp_path, build_empty(tmp_path))
    load_model(tmp_path, UNQUANTIZED, find_device())


STRAY = "language_model.model.layers.2.self_attn.q_proj.weight"
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "image_size": 28,
    "patch_size": 14,
}


def make_llama4() -> PreTrainedModel:
    text = {**TEXT, "intermediate_size_mlp": 32, "head_dim": 16, "num_local_experts": 2}
    sizes = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    vision = {**VISION, **sizes, "num_attention_heads": 2}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))


def make_mllama() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    text = {**TEXT, "cross_attention_layers": [1], "rope_parameters": rope}
    sizes = {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 64, "max_num_tiles": 2}
    tiles = {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2]]}
    return MllamaForConditionalGeneration(
        MllamaConfig(text_config=text, vision_config={**VISION, **sizes, **tiles})
    )


@pytest.mark.parametrize("make", [make_llama4, make_mllama])
def test_weights_of_images_are_no_fault_where_only_the_text_model_is_loaded(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path / NAME)

    check_stored(tmp_path / NAME, build_empty(tmp_path / NAME))
    model = load_model(tmp_path / NAME, UNQUANTIZED, find_device())
    assert model.config.get_text_config() is model.config
    change(
        tmp_path / NAME,
        lambda weights: weights.update({STRAY: torch.zeros(32, 32)}),
    )

    for message in refusals(tmp_path / NAME):
        assert message.endswith(f"weights that it does not have: {STRAY}.")


def test_a_description_without_weights_is_not_checked(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": "one.safetensors"}}'
    )

    check_stored(folder, build_empty(folder))


def test_experts_stored_one_by_one_are_the_weights_of_a_mixture(tmp_path: Path) -> None:
    write_model(find_families(["mixtral"])[0], tmp_path / NAME)
    stored = load_file(tmp_path / NAME / "model.safetensors")
    experts = [name for name in stored if ".experts.3.w2" in name]
    assert experts, sorted(stored)

    check_stored(tmp_path / NAME, build_empty(tmp_path / NAME))
    change(tmp_path / NAME, lambda weights: [weights.pop(name) for name in experts])

    with pytest.raises(ModelUnreadable):
        check_stored(tmp_path / NAME, build_empty(tmp_path / NAME))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_as_it_is_saved_passes(family: Family, tmp_path: Path) -> None:
    write_model(family, tmp_path)

    check_stored(tmp_path, build_empty(tmp_path))
