"""A mixture of experts, whose experts are tensors of several matrices, is divided as other layers are."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import distributed, multiprocessing
from transformers import AutoModelForCausalLM, MixtralConfig

from tests.factories import make_spec
from worker.models.device import find_device
from worker.training import adapter
from worker.training.ranks import divided_base
from worker.training.ranks.world import World

RANKS = 2
SPEC = make_spec(
    lora={"r": 4, "dropout": 0.0, "target_modules": ["q_proj", "w1", "w2", "w3"]},
    quantization={"load_in_4bit": False},
)
CONFIG = MixtralConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    max_position_embeddings=64,
)


def build() -> PeftModel:
    torch.manual_seed(0)
    model = adapter.attach(AutoModelForCausalLM.from_config(CONFIG), SPEC)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    return model.train()


def compute_gradients(model: PeftModel, ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def compare(rank: int, store: str) -> None:
    """Run by each rank, on tokens of its own."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=RANKS)
    ids_BT = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(rank))
    whole, divided, device = build(), build(), find_device()

    divided_base.divide(divided, divided_base.make_mesh(World(rank, RANKS), device), device)
    held, total = divided_base.count_held(divided)

    assert held < 0.7 * total
    expected, found = compute_gradients(whole, ids_BT), compute_gradients(divided, ids_BT)
    assert any("experts" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_divide_experts_have_the_gradients_of_one_that_holds_them(tmp_path: Path) -> None:
    multiprocessing.spawn(compare, (str(tmp_path / "store"),), nprocs=RANKS)
