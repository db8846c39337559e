"""A tiny real model, and adapters of every kind for it, as folders."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny_model import make_tiny_model
from worker.inference.adapters.cache import CachedAdapter, read_adapter

ADAPTERS: dict[str, dict[str, object]] = {
    "attention": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "everything": {"r": 16, "lora_alpha": 8, "target_modules": "all-linear"},
    "rank-stabilized": {
        "r": 3,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": ["down_proj", "k_proj"],
    },
    "patterns": {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj", "o_proj"],
        "rank_pattern": {"up_proj": 9},
        "alpha_pattern": {"layers.1.self_attn.o_proj": 2},
    },
    "output-layer": {"r": 2, "lora_alpha": 2, "target_modules": ["lm_head", "gate_proj"]},
    "first-layer": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "layers_to_transform": [0]},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: on a model of this size several wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def adapters_folder(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEFT folders by name, with random weights large enough to change the model's answers."""
    folder = tmp_path_factory.mktemp("artifacts")
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        save_adapter(models_folder / "tiny-llama", folder / name, seed=seed, **options)
    return folder


@pytest.fixture(scope="session")
def adapters(adapters_folder: Path) -> dict[str, CachedAdapter]:
    """The adapters of `adapters_folder` in main memory, by name."""
    return {name: read_adapter(name, adapters_folder / name) for name in ADAPTERS}


@contextlib.contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """PEFT 0.21 uses a deprecated name of transformers 5.23."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def save_adapter(
    model_folder: Path, folder: Path, *, seed: int = 0, std: float = 0.3, **options: object
) -> Path:
    """A LoRA adapter with random weights, saved by PEFT itself."""
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.random.fork_rng(devices=[]), peft_warnings_ignored():
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
    # Of the output layer PEFT would save the base's weights as well.
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder
