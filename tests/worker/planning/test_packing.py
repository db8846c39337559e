"""What a small model shows about packed rows is what the model itself shows."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from app.core.errors import InvalidRequest
from benchmarks.families.configs import FAMILIES, Family
from benchmarks.families.tiny_model import make_config, make_tokenizer
from worker.planning.packing import find_leak, refuse_leaking, shrink

# Families that no small model can be made of: a job finds it with the weights.
UNDECIDED = {"Zamba"}
# Sizes of a model that people tune, by its default configuration.
LARGE = [
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gemma3n_text"),
    *("phi3", "olmo2", "granite", "smollm3", "cohere2", "glm4", "gpt2", "gpt_neox", "starcoder2", "gpt_oss"),
    *("falcon", "bloom", "deepseek_v3", "mamba", "qwen3_5_text", "qwen3_next"),
]
# Recurrent states, ALiBi, and masks that do not look at positions.
LEAKING = {"mamba", "qwen3_5_text", "qwen3_next", "bloom", "falcon", "gpt_oss"}


def make(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def is_refused(config: PreTrainedConfig) -> bool:
    try:
        is_decided = refuse_leaking(config)
    except InvalidRequest:
        return True
    assert is_decided
    return False


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name not in UNDECIDED], ids=lambda family: family.name
)
def test_a_small_model_shows_what_the_model_shows(family: Family) -> None:
    if family.model_type not in CONFIG_MAPPING:
        pytest.skip("this version of transformers does not have it")
    config = make_config(family, make_tokenizer())

    assert is_refused(config) == find_leak(make(config))


@pytest.mark.parametrize("model_type", LARGE)
def test_a_large_model_is_decided_by_a_small_one(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()

    small = make(shrink(config))

    assert sum(parameter.numel() for parameter in small.parameters()) < 2_000_000
    assert is_refused(config) == (model_type in LEAKING)


def test_the_random_numbers_of_a_job_do_not_depend_on_it() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    refuse_leaking(CONFIG_MAPPING["llama"]())

    assert torch.equal(torch.rand(1), expected)


def test_what_can_not_be_made_small_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise TypeError("these sizes do not fit")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", fail)

    assert not refuse_leaking(CONFIG_MAPPING["llama"]())
