"""Answers on the small real model equal PEFT's, in float32, over adapters with random weights."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.worker.inference.conftest import peft_warnings_ignored, save_adapter
from tests.worker.inference.equal_to_peft.playing import BASE, END, Request, play, vary
from tests.worker.inference.random_models import generate
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.model.runner import ModelRunner
from worker.models.base_model import load_for_serving
from worker.models.demo_model import NAME
from worker.models.device import find_device

ROOT = Path(__file__).parents[3]
ADAPTERS: dict[str, dict[str, object]] = {
    "attention": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "everything": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
}
SYSTEM = "You help people who run Tunesmith, a service that fine-tunes language models on one machine. "
QUESTIONS = ["Name a colour.", "How do I cancel a job? Say it in one line.", "Count to five.", "Why?"]
NEW_TOKENS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_folder() -> Path:
    """The model of `make demo`."""
    models = ROOT / "data" / "models"
    subprocess.run(
        [sys.executable, "-m", "worker.models.demo_model", "--models-dir", str(models)], check=True
    )
    return models / NAME


@pytest.fixture(scope="module")
def adapter_folders(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(model_folder, folder / name, seed=seed, std=0.05, **options)
        for seed, (name, options) in enumerate(ADAPTERS.items())
    }


@pytest.fixture(scope="module")
def requests(model_folder: Path, adapter_folders: dict[str, Path]) -> list[Request]:
    """Every question of the base model and of each adapter; all prompts begin alike."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompts = [tuple(tokenizer(SYSTEM + question)["input_ids"]) for question in QUESTIONS]
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32")

    def requests_of(name: str | None, model: torch.nn.Module) -> list[Request]:
        return [Request(ids, name, NEW_TOKENS, generate(model, ids, NEW_TOKENS, end=END)) for ids in prompts]

    made = requests_of(None, plain)
    for name, folder in adapter_folders.items():
        with peft_warnings_ignored():
            tuned = PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32"), folder
            )
        made += requests_of(name, tuned)
    return made


@pytest.fixture(scope="module")
def adapters(adapter_folders: dict[str, Path]) -> dict[str, CachedAdapter]:
    return {name: read_adapter(name, folder) for name, folder in adapter_folders.items()}


@pytest.fixture(scope="module")
def runner(model_folder: Path) -> ModelRunner:
    device = find_device()
    model = load_for_serving(model_folder, BASE.quantization, device)
    return ModelRunner(model, device, adapter_slot_count=2, max_rows=6)


def test_adapters_change_what_the_small_model_says(requests: list[Request]) -> None:
    assert len({tuple(request.expected) for request in requests}) > len(QUESTIONS) * 2


@pytest.mark.parametrize("seed", range(4))
def test_mixed_batches_on_the_small_model_answer_as_peft_does_alone(
    seed, requests, adapters, runner, monkeypatch
):
    rng = random.Random(seed)
    vary(runner, rng, monkeypatch)
    done = play(rng, runner, adapters, rng.sample(requests, 8))

    assert [sequence.token_ids for sequence in done] == [request.expected for request in done.values()]
