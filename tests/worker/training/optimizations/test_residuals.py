"""A decoder with fused residual additions has the losses and gradients of transformers' layers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.factories import make_spec
from tests.tiny_model import NAME
from tests.worker.training.optimizations.conftest import draw_rows, losses_and_gradients
from worker.kernels import dequantize, low_rank_matmul
from worker.models.base_model import load_model
from worker.models.device import find_device
from worker.models.frozen_weights import Dequantizers, FourBitWeight
from worker.training import adapter
from worker.training.batches import Collator, make_dataset
from worker.training.config import CHECKPOINTING
from worker.training.optimizations import residuals
from worker.training.optimizations.lora.group import LoraKernels
from worker.training.optimizations.lora.linears import FusedLora


def make_model(models_folder: Path, targets: str | list[str], r: int = 4) -> PeftModel:
    spec = make_spec(lora={"r": r, "dropout": 0.0, "target_modules": targets})
    model = adapter.attach(load_model(models_folder / NAME, spec.quantization, find_device()), spec)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.train()


def checkpoint(model: PeftModel) -> None:
    model.enable_input_require_grads()
    getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}})


@pytest.mark.parametrize("checkpoints", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj"], ["o_proj", "up_proj"]], ids=["all", "some", "one adds"]
)
def test_losses_and_gradients_stay(
    models_folder: Path, targets: str | list[str], checkpoints: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(models_folder, targets)
    if checkpoints:
        checkpoint(model)
    batch = Collator(0)(list(make_dataset(draw_rows([5, 9, 3]))))
    expected = losses_and_gradients(model, batch)
    added: list[bool] = []
    fast = FusedLora(model, torch.float32)

    def add_next(layer: torch.nn.Module, summand: torch.Tensor) -> bool:
        added.append(FusedLora.add_next(fast, layer, summand))
        return added[-1]

    monkeypatch.setattr(fast, "add_next", add_next)
    with residuals.applied(model, fast):
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


def watch(monkeypatch: pytest.MonkeyPatch, name: str, look: Callable[[Any], object]) -> None:
    """Look at what a method of weights is asked for."""
    original = getattr(FourBitWeight, name)

    def method(weight: FourBitWeight, asked: Any, dtype: torch.dtype) -> torch.Tensor:
        look(asked)
        found: torch.Tensor = original(weight, asked, dtype)
        return found

    monkeypatch.setattr(FourBitWeight, name, method)


@pytest.mark.parametrize("is_cached", [False, True], ids=["dequantized", "cached"])
@pytest.mark.parametrize("checkpoints", [False, True], ids=["once", "checkpointed"])
@pytest.mark.parametrize(
    ("targets", "with_b", "with_a"),
    # Behind the last layer is no norm that would pad its gradient.
    [
        ("all-linear", {24: 6, 16: 4}, 3),
        (["q_proj", "v_proj"], {16: 4}, 0),
        (["up_proj", "down_proj"], {8: 2}, 1),
    ],
    ids=["all", "some", "two"],
)
def test_norms_pad_their_columns_for_products_with_a(
    models_folder: Path,
    targets: str | list[str],
    with_b: dict[int, int],
    with_a: int,
    checkpoints: bool,
    is_cached: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input and products with A are one matrix, weight and B another; and so gradients, weight and A."""
    model = make_model(models_folder, targets, r=8)
    if checkpoints:
        checkpoint(model)
    batch = Collator(0)(list(make_dataset(draw_rows([5, 9, 3]))))
    expected = losses_and_gradients(model, batch)
    dequantizers = Dequantizers(
        dequantize.dequantize, dequantize.dequantize_with_b, dequantize.dequantize_with_a
    )
    kernels = LoraKernels(dequantizers, low_rank_matmul)
    fast = FusedLora(model, torch.float32, kernels)
    if is_cached:
        with residuals.applied(model, fast):
            losses_and_gradients(model, batch)
        fast.cache_dequantized()
    read_with_b, read_with_a = Counter[int](), Counter[int]()
    watch(monkeypatch, "read_with_b", lambda columns: read_with_b.update([columns.count]))
    watch(monkeypatch, "read_with_a", lambda a_SI: read_with_a.update([len(a_SI)]))

    with residuals.applied(model, fast):
        found = losses_and_gradients(model, batch)

    # The adapter next to a cached weight is that of the pass before until it is copied again.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.mul_(1.5)
    with residuals.applied(model, fast):
        found_later = losses_and_gradients(model, batch)

    fast.remove()
    expected_later = losses_and_gradients(model, batch)
    passes = 4 if checkpoints else 2
    assert read_with_b == {count: passes * reads for count, reads in with_b.items()}
    assert read_with_a.total() == 2 * with_a
    for left, right in zip([*found, *found_later], [*expected, *expected_later], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("r", "padding"), [(8, 24), (3, 0), (96, 0)], ids=["fits", "no multiple", "too many"]
)
def test_padding_is_asked_for_where_it_can_be_used(models_folder: Path, r: int, padding: int) -> None:
    model = make_model(models_folder, "all-linear", r=r)
    dequantizers = Dequantizers(
        dequantize.dequantize, dequantize.dequantize_with_b, dequantize.dequantize_with_a
    )
    fast = FusedLora(model, torch.float32, LoraKernels(dequantizers, low_rank_matmul))
    attention = model.get_submodule("base_model.model.model.layers.0.self_attn")
    layers = attention.q_proj, attention.k_proj, attention.v_proj
    assert fast.input_padding(*layers) == 0  # before any pass PEFT computes

    fast._begin_pass(model, None)

    assert fast.input_padding(*layers) == padding
    with model.disable_adapter():
        assert fast.input_padding(*layers) == 0
    for layer in layers:
        layer.lora_dropout["default"] = torch.nn.Dropout(0.2)
    assert fast.input_padding(*layers) == 0
    model.eval()
    assert fast.input_padding(*layers) == padding
    fast.cache_dequantized()
    assert fast.input_padding(*layers) == 0  # cached as training reads them


def test_layers_with_pefts_forward_add_nothing(models_folder: Path) -> None:
    model = make_model(models_folder, "all-linear")
    batch = Collator(0)(list(make_dataset(draw_rows([5, 9]))))
    expected = losses_and_gradients(model, batch)
    fast = FusedLora(model, torch.float32)

    with residuals.applied(model, fast), fast.off():
        found = losses_and_gradients(model, batch)

    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_summand_that_peft_computes_with_is_added_all_the_same(models_folder: Path) -> None:
    model = make_model(models_folder, "all-linear")
    fast = FusedLora(model, torch.float32)
    down = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    x, summand = torch.randn(3, down.in_features), torch.randn(3, down.out_features)
    with fast.off():
        expected = summand + down(x)

    # Before any pass of the model the function has no copies of the adapters and leaves layers to PEFT.
    assert fast.add_next(down, summand)

    torch.testing.assert_close(down(x), expected)
    torch.testing.assert_close(down(x), expected - summand, rtol=1e-4, atol=1e-5)
