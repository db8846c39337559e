"""The explicit decoder has the losses and gradients of transformers' layers with PEFT's adapters."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.worker.decoder.models import FAMILIES, make_examples, make_model
from worker.decoder import autograd
from worker.decoder.fused_operations import FusedOperations
from worker.decoder.operations import Operations, TorchOperations
from worker.decoder.reading import Unsupported
from worker.kernels import dequantize, low_rank_matmul
from worker.models.frozen_weights import Dequantizers, FourBitWeight
from worker.training.batches import PaddingFreeCollator
from worker.training.loss import Decoder, score
from worker.training.optimizations import varlen_attention
from worker.training.optimizations.explicit_decoder import ExplicitDecoder
from worker.training.optimizations.lora_layers import LIBRARY_KERNELS, LoraKernels

KERNELS = LoraKernels(
    Dequantizers(dequantize.dequantize, dequantize.dequantize_with_b, dequantize.dequantize_with_a),
    low_rank_matmul,
)


def run(
    model: PeftModel, decoder: Decoder | None = None, *, checkpoints: bool = False, lengths: Any = (9, 5, 12)
) -> list[torch.Tensor]:
    """(loss, gradients of the adapters in order) of a padding-free batch."""
    varlen_attention.register(varlen_attention.row_by_row)
    base = model.get_base_model()
    base.set_attn_implementation(varlen_attention.NAME)
    for layer in base.model.layers:
        layer.gradient_checkpointing = checkpoints and decoder is not None
    model.zero_grad()
    torch.manual_seed(3)
    scores = score(base, PaddingFreeCollator()(make_examples(lengths)), decoder)
    scores.log_prob_sum.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    return [scores.log_prob_sum.detach(), *gradients]


def make_decoder(
    model: PeftModel,
    operations: Operations | None = None,
    kernels: LoraKernels = LIBRARY_KERNELS,
    dtype: torch.dtype = torch.float32,
) -> ExplicitDecoder:
    attention = varlen_attention.row_by_row
    return ExplicitDecoder(model, dtype, operations or TorchOperations(), kernels, attention)


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-4) -> None:
    assert len(found) == len(expected) > 5
    for left, right in zip(found, expected, strict=True):
        assert (left - right).norm() <= tolerance * right.norm()


@pytest.mark.parametrize("checkpoints", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("is_4bit", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_models_own_layers(
    family: str, is_4bit: bool, dropout: float, checkpoints: bool
) -> None:
    """With dropout, too: it draws the masks that PEFT's layers draw."""
    model = make_model(family, torch.float32, is_4bit=is_4bit, dropout=dropout, b_std=0.05)
    expected = run(model)

    found = run(model, make_decoder(model), checkpoints=checkpoints)

    assert_same(found, expected)
    again = run(model)
    assert all(torch.equal(left, right) for left, right in zip(again, expected, strict=True))


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "v_proj"], ["o_proj", "up_proj"], ["k_proj", "down_proj"]],
    ids=lambda targets: "+".join(targets),
)
@pytest.mark.parametrize("is_4bit", [False, True], ids=["dense", "nf4"])
def test_adapters_on_some_layers(is_4bit: bool, targets: list[str]) -> None:
    model = make_model("qwen2", torch.float32, is_4bit=is_4bit, targets=targets, b_std=0.05)
    expected = run(model)

    assert_same(run(model, make_decoder(model)), expected)


class WatchedOperations(TorchOperations):
    """Counts at each rotation how many inputs of `down` exist."""

    def __init__(self) -> None:
        self.inputs: list[weakref.ref[torch.Tensor]] = []
        self.existing: list[int] = []

    def activate(self, *given: Any, padding: int = 0) -> torch.Tensor:
        active_TI = super().activate(*given, padding=padding)
        self.inputs.append(weakref.ref(active_TI))
        return active_TI

    def rotate(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.existing.append(sum(one() is not None for one in self.inputs))
        return super().rotate(*given)


def test_what_the_gradients_of_the_mlp_need_is_freed_before_those_of_attention() -> None:
    model = make_model("llama", torch.float32, is_4bit=False)
    operations = WatchedOperations()

    run(model, make_decoder(model, operations), checkpoints=True)

    # Of three layers: each one's forward pass, its repetition, and its gradient.
    assert operations.existing == [0] * 9


@pytest.mark.parametrize(
    ("targets", "existing"), [("all-linear", [0, 1, 2]), (["q_proj", "v_proj"], [0] * 3)]
)
def test_inputs_of_layers_without_adapters_are_not_saved(
    targets: str | list[str], existing: list[int]
) -> None:
    model = make_model("llama", torch.float32, is_4bit=False, targets=targets)
    operations = WatchedOperations()

    run(model, make_decoder(model, operations))

    assert operations.existing[:3] == existing


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "phi3"])
def test_kernels_compute_the_same(family: str, dropout: float) -> None:
    model = make_model(family, torch.float32, is_4bit=True, dropout=dropout, b_std=0.05)
    expected = run(model, lengths=(5, 3))

    found = run(model, make_decoder(model, FusedOperations(), KERNELS), lengths=(5, 3))

    assert_same(found, expected)


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
    # By columns: reads in three layers. Attention makes the input of o, which is not padded.
    [
        ("all-linear", {24: 9, 16: 6, 8: 3}, 6),
        (["q_proj", "v_proj"], {16: 6}, 0),
        (["up_proj", "down_proj"], {8: 6}, 3),
    ],
    ids=["all", "some", "two"],
)
def test_adapters_are_appended_to_weights(
    targets: str | list[str],
    with_b: dict[int, int],
    with_a: int,
    checkpoints: bool,
    is_cached: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input and products with A are one matrix, weight and B another; and so gradients, weight and A."""
    model = make_model("llama", torch.float32, is_4bit=True, targets=targets, b_std=0.05)
    decoder = make_decoder(model, kernels=KERNELS)
    if is_cached:
        decoder.cache_dequantized()
    read_with_b, read_with_a = Counter[int](), Counter[int]()
    watch(monkeypatch, "read_with_b", lambda columns: read_with_b.update([columns.count]))
    watch(monkeypatch, "read_with_a", lambda a_SI: read_with_a.update([len(a_SI)]))
    assert_same(run(model, decoder, checkpoints=checkpoints, lengths=(5, 3)), run(model, lengths=(5, 3)))

    # The adapter next to a cached weight is that of the pass before until it is copied again.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.mul_(1.5)
    found = run(model, decoder, lengths=(5, 3))

    assert_same(found, run(model, lengths=(5, 3)))
    # A repeated forward pass makes no output of the last projection.
    repeated = {count: reads - (3 if count == 8 else 0) for count, reads in with_b.items()}
    expected = Counter(with_b) + Counter(with_b) + (Counter(repeated) if checkpoints else Counter())
    assert read_with_b == expected
    assert read_with_a.total() == 2 * with_a


@pytest.mark.parametrize(
    ("r", "padding"), [(8, 24), (3, 0), (96, 0)], ids=["fits", "no multiple", "too many"]
)
def test_padding_is_asked_for_where_it_can_be_used(r: int, padding: int) -> None:
    model = make_model("llama", torch.float32, is_4bit=True, dropout=0.2, r=r)
    qkv = make_decoder(model, kernels=KERNELS).projections[0]
    assert qkv.input_padding() == 0  # dropout
    model.eval()
    assert qkv.input_padding() == padding
    qkv.cache_dequantized()
    assert qkv.input_padding() == 0  # cached as training reads them


def test_what_a_pass_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With checkpoints a layer's input alone: each forward pass is repeated."""
    model = make_model("llama", torch.float32, is_4bit=True)
    states: list[int] = []
    decoder = make_decoder(model)
    original = autograd._repeat

    def repeat(*given: Any) -> Any:
        states.append(1)
        return original(*given)

    monkeypatch.setattr(autograd, "_repeat", repeat)
    run(model, decoder, checkpoints=True)
    assert len(states) == 3


@pytest.mark.parametrize(
    ("targets", "options", "match"),
    [
        ("all-linear", {"use_dora": True}, "no plain LoRA"),
        (["q_proj"], {"modules_to_save": ["k_proj"]}, "the linear layer ModulesToSaveWrapper"),
        (["q_proj"], {"modules_to_save": ["input_layernorm"]}, "the norm ModulesToSaveWrapper"),
    ],
    ids=["dora", "trained linear", "trained norm"],
)
def test_what_is_not_supported_is_said(targets: Any, options: dict[str, Any], match: str) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model("qwen2", torch.float32, is_4bit=False).unload()
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options)
    with pytest.raises(Unsupported, match=match):
        make_decoder(get_peft_model(base, config))
