"""Answers of a batch are those of each prompt alone, and generating leaves the model as it was."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
)

from worker.training.samples.generation import AnswerLimits, SampleGenerator

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, **HEADS),
    "sliding window": Gemma2Config(**SMALL, **HEADS, head_dim=8, sliding_window=4),
    "learned positions": GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, tie_word_embeddings=False
    ),
    "recurrent": MambaConfig(**SMALL, state_size=8),
}
TARGETS = {"llama": "q_proj", "gemma2": "q_proj", "gpt2": "lm_head", "mamba": "x_proj"}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [40, 41, 42, 43, 44]]


def make_generator(
    config: PreTrainedConfig = CONFIGS["llama"], *, end: int = 59, is_stopped: Any = lambda: False
) -> SampleGenerator:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=[TARGETS[config.model_type]], lora_dropout=0.5)
    )
    trainer: Any = SimpleNamespace(model=model.train(), accelerator=SimpleNamespace(autocast=nullcontext))
    return SampleGenerator(trainer, AnswerLimits(10, frozenset([end]), is_stopped))


@pytest.mark.parametrize("family", CONFIGS)
def test_answers_of_a_batch_are_those_of_each_prompt_alone(family: str) -> None:
    generator = make_generator(CONFIGS[family])

    together = generator.generate(PROMPTS)

    alone = [generator.generate([prompt]) for prompt in PROMPTS]
    assert together == [one for answers in alone for one in answers or []]
    assert together is not None
    assert [one.is_cut for one in together] == [one.token_ids[-1] != 59 for one in together]
    assert len(together[0].token_ids) == 10


def test_an_answer_ends_with_its_end_token() -> None:
    (found,) = make_generator().generate(PROMPTS[:1]) or []
    end = found.token_ids[3]

    first, *_others = make_generator(end=end).generate(PROMPTS) or []

    assert first.token_ids == found.token_ids[: found.token_ids.index(end) + 1]
    assert not first.is_cut


def test_the_model_and_the_random_state_are_as_before() -> None:
    generator = make_generator()
    model = generator._trainer.model
    settings, attention = model.get_base_model().generation_config, model.config._attn_implementation
    model.get_base_model().set_attn_implementation("eager")  # in the place of padding-free attention
    torch.manual_seed(7)
    expected = torch.rand(3)

    torch.manual_seed(7)
    generator.generate(PROMPTS)

    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert model.get_base_model().generation_config is settings
    assert attention != model.config._attn_implementation == "eager"
    assert not any(weight.grad is not None for weight in model.parameters())


def test_a_stop_ends_the_answers_at_their_next_token() -> None:
    seen: list[bool] = []

    def is_stopped() -> bool:
        seen.append(len(seen) >= 3)
        return seen[-1]

    assert make_generator(is_stopped=is_stopped).generate(PROMPTS) is None
    assert len(seen) == 5  # the fourth token is the last one


def test_answers_that_take_too_long_are_cut() -> None:
    found = make_generator().generate(PROMPTS, max_seconds=0.0) or []

    assert [(len(one.token_ids), one.is_cut) for one in found] == [(1, True)] * 3
