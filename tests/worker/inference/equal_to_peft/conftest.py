"""Requests with the answers that PEFT generates, and the engine's runner of the tiny model."""

import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.worker.inference.conftest import ADAPTERS
from tests.worker.inference.equal_to_peft.playing import (
    END,
    REQUEST_COUNT,
    SHARED_PROMPT,
    Request,
    load_with_peft,
    new_runner,
)
from tests.worker.inference.random_models import generate
from worker.inference.model.runner import ModelRunner


@pytest.fixture(scope="module")
def requests(models_folder: Path, adapters_folder: Path) -> list[Request]:
    """Prompts of all lengths over all adapters, and what PEFT generates for each alone."""
    rng = random.Random(0)
    plain = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    tuned = load_with_peft(models_folder, adapters_folder)
    made = []
    for index in range(REQUEST_COUNT):
        adapter = [None, *ADAPTERS][index % (len(ADAPTERS) + 1)]
        own_ids = tuple(rng.randrange(3, 290) for _ in range(rng.choice([1, 3, 9, 20, 50])))
        prompt_ids = rng.choice([(), SHARED_PROMPT]) + own_ids
        max_new_tokens = rng.choice([1, 4, 12, 25])
        if adapter:
            tuned.set_adapter(adapter)
        expected = generate(tuned if adapter else plain, prompt_ids, max_new_tokens, end=END)
        made.append(Request(prompt_ids, adapter, max_new_tokens, expected))
    return made


@pytest.fixture(scope="module")
def runner(models_folder: Path) -> ModelRunner:
    return new_runner(models_folder)
