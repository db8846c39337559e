"""Adapters on the weights of experts, which are parameters: their dropout, their refusals, and routers."""

import pytest
import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.core.errors.jobs import BadTarget
from app.core.specs.job import LoraSpec
from benchmarks.families.configs import find_families
from benchmarks.families.tiny_model import make_config, make_tokenizer
from tests.factories import make_spec
from worker.models import lora, targets
from worker.planning.model_checks import check_model

ALL_LINEAR = LoraSpec(r=4, target_modules="all-linear")


def make_model(model_type: str) -> PreTrainedModel:
    [family, *_others] = find_families([model_type])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(make_config(family, make_tokenizer()))


def attach(model_type: str, spec: LoraSpec) -> dict[str, LoraLayer]:
    with torch.device("meta"):
        adapted = lora.attach(make_model(model_type), spec)
    return {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3", "olmoe"])
def test_dropout_falls_on_the_linear_layers_of_a_mixture(model_type: str) -> None:
    layers = attach(model_type, ALL_LINEAR)

    drops = {
        isinstance(layer, ParamWrapper): type(layer.lora_dropout["default"]) for layer in layers.values()
    }
    assert drops == {True: nn.Identity, False: nn.Dropout}


def test_fused_weights_of_experts_have_the_rank_of_both_and_the_same_scale() -> None:
    ranks = {
        layer.parameter_name: (layer.r["default"], layer.scaling["default"])
        for layer in attach("mixtral", ALL_LINEAR).values()
        if isinstance(layer, ParamWrapper)
    }

    assert ranks == {"gate_up_proj": (8, 4), "down_proj": (4, 4), "weight": (4, 4)}


def test_a_config_of_experts_says_no_dropout_as_peft_would_not_load_it() -> None:
    with torch.device("meta"):
        mixture = lora.attach(make_model("mixtral"), ALL_LINEAR)
        others = lora.attach(make_model("llama"), ALL_LINEAR)

    assert mixture.peft_config["default"].lora_dropout == 0
    assert others.peft_config["default"].lora_dropout == ALL_LINEAR.dropout > 0


@pytest.mark.parametrize(
    ("model_type", "spec", "is_said"),
    [
        ("mixtral", {"target_modules": "all-linear"}, True),
        ("mixtral", {"target_modules": ["w1", "w2", "w3"]}, True),
        ("mixtral", {"target_modules": ["q_proj", "v_proj"]}, False),
        ("mixtral", {"target_modules": "all-linear", "dropout": 0}, False),
        ("llama", {"target_modules": "all-linear"}, False),
    ],
)
def test_where_dropout_does_not_fall_is_said_before_the_job(
    model_type: str, spec: dict[str, object], is_said: bool
) -> None:
    findings = check_model(make_model(model_type), make_spec(lora=spec), make_tokenizer())

    said = [finding.message for finding in findings if finding.code == "partial_dropout"]
    assert bool(said) is is_said
    assert not said or "lora.dropout 0.1 falls on the linear layers only" in said[0]


@pytest.mark.parametrize(
    "spec", [{"use_dora": True, "target_modules": "all-linear"}, {"target_modules": ["w1"]}]
)
def test_what_experts_cannot_take_is_refused_without_names_that_are_pefts_own(
    spec: dict[str, object],
) -> None:
    with pytest.raises(BadTarget) as caught:
        attach("mixtral", LoraSpec.model_validate(spec))

    said = f"{caught.value.message} {caught.value.hint}"
    assert "base_layer" not in said
    assert "default" not in said
    assert "ParamWrapper" not in said


@pytest.mark.parametrize("model_type", ["llama4_text", "phimoe"])
def test_a_router_that_returns_several_tensors_gets_no_adapter(model_type: str) -> None:
    names = attach(model_type, ALL_LINEAR)

    assert any(name.endswith("q_proj") for name in names)
    assert not any("router" in name for name in names)
    with pytest.raises(BadTarget, match="'router', which match"):
        targets.check_names(make_model(model_type), make_spec(lora={"target_modules": ["q_proj", "router"]}))


def test_a_linear_layer_of_a_familys_own_class_is_a_target() -> None:
    assert any(name.endswith("dense_h_to_4h") for name in attach("falcon", ALL_LINEAR))
