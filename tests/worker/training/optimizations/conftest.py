"""Rows of random tokens, a small adapter whose B matters, and what a batch gives it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional

from tests.factories import make_spec
from tests.tiny_model import NAME
from worker.models.base_model import load_model
from worker.models.device import find_device
from worker.templates.token_rows import IGNORED, TokenRow
from worker.training import adapter
from worker.training.batches import decoder_inputs
from worker.training.loss import Decoder, score

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


def draw_rows(lengths: list[int], *, masked: tuple[int, ...] = ()) -> list[TokenRow]:
    """Rows of random tokens; those at `masked` have nothing to learn."""
    random = torch.Generator().manual_seed(0)
    rows = []
    for place, length in enumerate(lengths):
        ids = torch.randint(5, 60, (length,), generator=random).tolist()
        labels = [IGNORED] * length if place in masked else [IGNORED, *ids[1:]]
        rows.append(TokenRow(place, ids, labels))
    return rows


@pytest.fixture
def model(models_folder: Path) -> PeftModel:
    spec = make_spec(lora={"r": 4, "dropout": 0.0, "target_modules": "all-linear"})
    model = adapter.attach(load_model(models_folder / NAME, spec.quantization, find_device()), spec)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.train()


def sum_of_losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    logits_BLV = model(**decoder_inputs(batch), use_cache=False).logits
    labels_BL = batch["labels"]
    return functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def losses_and_gradients(
    model: Any, batch: dict[str, Any], decoder: Decoder | None = None, *, adds: bool = False
) -> list[torch.Tensor]:
    """By the model's own logits, or with another decoder. `adds`: to the gradients that there are."""
    if not adds:
        model.zero_grad()
    if decoder is None:
        loss = sum_of_losses(model, batch)
    else:
        loss = -score(model.get_base_model(), batch, decoder).log_prob_sum
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]
