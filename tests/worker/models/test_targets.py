"""The modules that an adapter is on: names that match nothing, and the default of every family."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from app.core.errors.jobs import BadTarget
from app.core.specs.job import LoraSpec
from tests.factories import make_spec
from worker.models import lora, targets

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
# Families for which PEFT has no default (0.21), with some of the modules that all-linear means there.
WITHOUT_DEFAULT = {
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "olmo2": {"q_proj", "down_proj"},
    "smollm3": {"q_proj", "down_proj"},
    "granite": {"q_proj", "down_proj"},
    "gpt_oss": {"q_proj", "o_proj"},
    "glm4": {"q_proj", "gate_up_proj"},
    "granitemoe": {"q_proj", "o_proj"},
    "falcon_h1": {"in_proj", "q_proj"},
    "mamba": {"in_proj", "x_proj"},
}
WITH_DEFAULT = {
    "llama": {"q_proj", "v_proj"},
    "mixtral": {"q_proj", "v_proj"},
    "gpt2": {"c_attn"},
    "phi": {"q_proj", "v_proj", "fc1", "fc2"},
    "gpt_neox": {"query_key_value"},
}


def make_model(family: str, **fields: object) -> PreTrainedModel:
    config = CONFIG_MAPPING[family](**{**SIZES, **fields})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def adapted(model: PeftModel) -> set[str]:
    """Full names of the modules that have an adapter."""
    named = model.get_base_model().named_modules()
    return {name for name, module in named if isinstance(module, BaseTunerLayer)}


def short(names: set[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def attach(model: PreTrainedModel, **settings: object) -> set[str]:
    with torch.device("meta"):
        return adapted(lora.attach(model, LoraSpec.model_validate({"r": 4, **settings})))


def refusal(family: str, **settings: object) -> BadTarget:
    fields = {key: settings.pop(key) for key in ("quantization", "continue_from") if key in settings}
    with pytest.raises(BadTarget) as caught:
        targets.check_names(make_model(family), make_spec(lora=settings, **fields))
    return caught.value


def test_one_name_that_matches_nothing_is_refused_with_the_nearest_and_with_all() -> None:
    error = refusal("llama", target_modules=["q_proj", "v_porj"])

    assert error.message == (
        "lora.target_modules has 'v_porj', which matches nothing in the base model. Did you mean 'v_proj'?"
    )
    assert error.param == "lora.target_modules"
    assert "Those of this model: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj." in error.hint


def test_names_of_another_family_are_refused_though_some_match() -> None:
    llama = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    error = refusal("phi3", target_modules=llama)

    assert "'q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj', which match nothing" in error.message
    assert "'qkv_proj', 'gate_up_proj'" in error.message


def test_a_full_name_gets_a_full_name_as_the_nearest() -> None:
    error = refusal("llama", target_modules=["model.layers.1.self_attn.q_porj"])

    assert "Did you mean 'model.layers.1.self_attn.q_proj'?" in error.message


@pytest.mark.parametrize(
    "names", [["q_proj"], ["self_attn.q_proj"], ["model.layers.0.self_attn.q_proj"], ["embed_tokens"]]
)
def test_a_name_matches_as_in_peft(names: list[str]) -> None:
    model = make_model("llama")

    targets.check_names(model, make_spec(lora={"target_modules": names}))

    assert attach(model, target_modules=names)


def test_the_end_of_a_name_matches_after_a_dot_only() -> None:
    assert "'proj'" in refusal("llama", target_modules=["q_proj", "proj"]).message


def test_a_module_is_not_both_a_target_and_trained_whole() -> None:
    error = refusal(
        "llama", target_modules=["q_proj", "embed_tokens"], modules_to_save=["embed_tokens", "lm_head"]
    )

    assert "'embed_tokens', which lora.modules_to_save trains whole already" in error.message


def test_a_module_to_save_that_matches_nothing_is_refused_with_the_nearest() -> None:
    assert "Did you mean 'lm_head'?" in refusal("llama", modules_to_save=["lm_haed"]).message


def test_a_module_that_4_bits_hold_is_known_without_weights() -> None:
    assert "held in 4 bits" in refusal("llama", modules_to_save=["q_proj"]).message
    spec = make_spec(lora={"modules_to_save": ["q_proj"]}, quantization={"load_in_4bit": False})
    targets.check_names(make_model("llama"), spec)


def test_an_adapter_to_continue_brings_its_names() -> None:
    names = ["q_proj", "gate_proj", "qkv_proj"]

    targets.check_names(
        make_model("phi3"), make_spec(lora={"target_modules": names}, continue_from="ad_0000000000000000")
    )


@pytest.mark.parametrize("names", [["w1", "w2", "w3"], ["q_proj", "w1", "w3"]])
def test_old_names_of_experts_are_taken_as_peft_takes_them(names: list[str]) -> None:
    targets.check_names(make_model("mixtral"), make_spec(lora={"target_modules": names}))

    assert "'w9'" in refusal("mixtral", target_modules=[*names, "w9"]).message


@pytest.mark.parametrize("family", WITHOUT_DEFAULT)
def test_without_a_default_of_peft_every_linear_layer_gets_an_adapter(family: str) -> None:
    model = make_model(family)

    explained = targets.explain_default(model, LoraSpec())
    found = short(attach(model, dropout=0))

    assert explained
    assert f"{family!r}, so every linear layer" in explained
    assert found >= WITHOUT_DEFAULT[family]
    assert found == set(explained.partition("'all-linear': ")[2].removesuffix(".").split(", "))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", WITH_DEFAULT)
def test_a_default_of_peft_is_used_without_a_word(family: str) -> None:
    model = make_model(family)

    assert targets.explain_default(model, LoraSpec()) is None
    assert short(attach(model)) == WITH_DEFAULT[family]


def test_a_default_of_peft_that_the_model_does_not_have_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets.LoraModel.target_module_mapping, "llama", ["q_proj", "value_proj"])
    model = make_model("llama")

    assert targets.explain_default(model, LoraSpec())
    assert "down_proj" in short(attach(model))


def test_experts_that_get_adapters_are_named() -> None:
    explained = targets.explain_default(
        make_model("qwen3_moe", num_experts=4, moe_intermediate_size=16), LoraSpec()
    )

    assert explained
    assert "the experts' weights (down_proj, gate.weight, gate_up_proj)" in explained


def test_what_text_never_passes_gets_no_adapter() -> None:
    text = {**SIZES, "vocab_size": 64, "intermediate_size": 32}
    config = CONFIG_MAPPING["gemma3"](text_config=text, vision_config={"num_hidden_layers": 1})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    names = attach(model, target_modules=["q_proj", "v_proj"])

    assert len(names) == 4
    assert all("language_model" in name for name in names)
