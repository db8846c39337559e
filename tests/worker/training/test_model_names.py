"""What TRL reads of a model by names that some families do not have."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.families.configs import FAMILIES, Family
from benchmarks.families.tiny_model import make_config, make_tokenizer
from worker.training.model_names import add_names


def make_model(name: str) -> PreTrainedModel:
    [family] = [family for family in FAMILIES if family.name == name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(family, make_tokenizer()))
    add_names(model)
    return model


@pytest.mark.parametrize("name", ["Granite 3 MoE", "Granite 4 (mixture)", "Mixtral", "Qwen 3 MoE"])
def test_a_mixture_says_how_many_experts_it_has(name: str) -> None:
    assert make_model(name).config.num_experts == 4
    assert make_model(name).config.router_aux_loss_coef > 0


def test_a_model_without_experts_has_no_loss_of_a_router() -> None:
    assert make_model("Granite 4 (dense)").config.router_aux_loss_coef == 0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_decoder_of_every_family_is_found(family: Family) -> None:
    model = make_model(family.name)

    assert model.base_model is not model
