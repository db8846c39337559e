"""A decoder without additions of its own has the losses and gradients of transformers' layers."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.factories import make_spec
from tests.tiny_model import NAME
from tests.worker.training.fast.conftest import draw_rows, losses_and_gradients
from worker.base_model import load_model
from worker.device import find_device
from worker.training import adapter
from worker.training.batches import Collator, make_dataset
from worker.training.config import CHECKPOINTING
from worker.training.fast import residuals
from worker.training.fast.linears import FastLinears


def make_model(models_folder: Path, targets: str | list[str]) -> PeftModel:
    spec = make_spec(lora={"r": 4, "dropout": 0.0, "target_modules": targets})
    model = adapter.attach(load_model(models_folder / NAME, spec.quantization, find_device()), spec)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.train()


@pytest.mark.parametrize("checkpoints", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj"], ["o_proj", "up_proj"]], ids=["all", "some", "one adds"]
)
def test_losses_and_gradients_stay(models_folder: Path, targets: str | list[str], checkpoints: bool) -> None:
    model = make_model(models_folder, targets)
    if checkpoints:
        model.enable_input_require_grads()
        getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}})
    batch = Collator(0)(list(make_dataset(draw_rows([5, 9, 3]))))
    expected = losses_and_gradients(model, batch)
    added: list[bool] = []
    fast = FastLinears(model, torch.float32)

    def add_next(layer: torch.nn.Module, summand: torch.Tensor) -> bool:
        added.append(fast.add_next(layer, summand))
        return added[-1]

    with residuals.applied(model, add_next):
        found = losses_and_gradients(model, batch)

    fast.remove()
    layers = model.config.num_hidden_layers
    adding = {"all-linear": 2, "o_proj": 1, "q_proj": 0}[targets if isinstance(targets, str) else targets[0]]
    assert sum(added[: 2 * layers]) == adding * layers
    assert len(added) == 2 * layers * (2 if checkpoints else 1)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    again = losses_and_gradients(model, batch)
    assert all(torch.equal(left, right) for left, right in zip(again, expected, strict=True))


def test_layers_that_are_taken_out_add_nothing(models_folder: Path) -> None:
    model = make_model(models_folder, "all-linear")
    batch = Collator(0)(list(make_dataset(draw_rows([5, 9]))))
    expected = losses_and_gradients(model, batch)
    fast = FastLinears(model, torch.float32)

    with residuals.applied(model, fast.add_next), fast.off():
        found = losses_and_gradients(model, batch)

    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_summand_that_peft_computes_with_is_added_all_the_same(models_folder: Path) -> None:
    model = make_model(models_folder, "all-linear")
    fast = FastLinears(model, torch.float32)
    down = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    x, summand = torch.randn(3, down.in_features), torch.randn(3, down.out_features)
    with fast.off():
        expected = summand + down(x)

    # Before any pass of the model the function has no copies of the adapters and leaves layers to PEFT.
    assert fast.add_next(down, summand)

    torch.testing.assert_close(down(x), expected)
    torch.testing.assert_close(down(x), expected - summand, rtol=1e-4, atol=1e-5)
