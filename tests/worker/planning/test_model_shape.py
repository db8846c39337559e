"""Every family of causal models has a shape, whatever its config looks like."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

from app.core.specs.job import LoraSpec
from benchmarks.families.configs import FAMILIES, Family
from benchmarks.families.tiny_model import make_config, make_tokenizer
from worker.models.layer_sizes import largest
from worker.planning.model_shape import shape_of
from worker.planning.optimizations import describe_family


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:The following (rank|alpha)_pattern")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_shape(family: Family) -> None:
    if family.model_type not in CONFIG_MAPPING:
        pytest.skip("this version of transformers does not have it")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(family, make_tokenizer()))

    kind, shape = describe_family(model), shape_of(model, LoraSpec(r=4, dropout=0))

    assert shape.layers > 0
    assert shape.mlp_width > 0
    assert shape.query_width >= shape.key_width > 0
    assert shape.trained_sizes
    assert kind.head_width > 0


@pytest.mark.parametrize(("listed", "expected"), [([96, 128], 128), ((64, 32), 64), (48, 48), (None, None)])
def test_a_size_of_every_layer_counts_as_the_largest(listed: object, expected: int | None) -> None:
    config = LlamaConfig()
    config.odd_size = listed

    assert largest(config, "odd_size") == expected


def test_a_config_of_each_layer_is_read() -> None:
    assert largest(CONFIG_MAPPING["gemma4_text"](), "head_dim") == 512
