"""The losses are those of TRL's trainers, on the same answers of the same model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from app.core.specs.methods import DpoLoss, DpoSpec, KtoSpec, OrpoSpec
from tests.tiny_model import NAME
from tests.worker.training.preferences.conftest import comparisons, labelled
from worker.training.config import CHECKPOINTING
from worker.training.preferences.objectives import AnswerScores, PreferenceLosses, make_objective

BETA = 0.3


def make_model(folder: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))


def perturb(model: PeftModel) -> None:
    """Move the adapter, but not TRL's copy of it, away from where it started."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(weight, std=0.3)


def turns(messages: Any) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "trl"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        CHECKPOINTING: False,
        "max_length": None,
        "per_device_train_batch_size": 4,
        "beta": BETA,
    }


@pytest.fixture
def dpo_trainer(models_folder: Path, options: dict[str, Any]) -> DPOTrainer:
    columns = ("prompt", "chosen", "rejected")
    rows = [{name: turns(getattr(row, name)) for name in columns} for row in comparisons(4)]
    trainer = DPOTrainer(
        model=make_model(models_folder / NAME),
        args=DPOConfig(label_smoothing=0.1, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(models_folder / NAME),
    )
    perturb(trainer.model)
    return trainer


@torch.no_grad()
def measure(model: PeftModel, ids_BL: torch.Tensor, mask_BL: torch.Tensor, attention_BL: torch.Tensor) -> Any:
    """(log-probabilities of the masked tokens, how many) of each sequence, from all logits."""
    logits_BLV = model(input_ids=ids_BL, attention_mask=attention_BL).logits.float()
    log_probs_BL = logits_BLV[:, :-1].log_softmax(-1).gather(-1, ids_BL[:, 1:, None])[..., 0]
    return (log_probs_BL * mask_BL[:, 1:]).sum(1), mask_BL[:, 1:].sum(1).float()


@contextmanager
def reference(model: PeftModel) -> Iterator[None]:
    with model.disable_adapter():
        yield


def alternate(values_B: torch.Tensor) -> torch.Tensor:
    """From TRL's order, all chosen ones first, to chosen, rejected, chosen …"""
    return torch.stack(values_B.chunk(2), dim=1).flatten()


@pytest.mark.parametrize("smoothing", [0.1, 0.0])
def test_every_dpo_loss_is_trls(dpo_trainer: DPOTrainer, smoothing: float) -> None:
    model = dpo_trainer.model
    batch = next(iter(dpo_trainer.get_train_dataloader()))
    dpo_trainer.label_smoothing = smoothing
    tokens = batch["input_ids"], batch["completion_mask"], batch["attention_mask"]
    log_probs_B, counts_B = measure(model, *tokens)
    with reference(model):
        reference_B, _ = measure(model, *tokens)
    answers = AnswerScores(*map(alternate, (log_probs_B, counts_B, reference_B)))

    checked = []
    for name in get_args(DpoLoss):
        if name == "exo_pair" and not smoothing:
            continue
        takes_smoothing = name in ("robust", "exo_pair", "aot", "aot_unpaired")
        settings = DpoSpec(
            beta=BETA,
            loss_type=name,
            label_smoothing=smoothing if takes_smoothing else 0.0,
            discopop_tau=0.05,
        )
        dpo_trainer.loss_types = [name]
        expected = dpo_trainer.compute_loss(model, batch)
        outcome = make_objective(settings).compute(answers)
        torch.testing.assert_close(outcome.losses_E.mean(), expected.detach(), rtol=1e-4, atol=1e-5)
        checked.append(float(expected.detach()))

    assert len(set(checked)) > 10  # the adapter has moved, so the losses differ
    metrics = dpo_trainer._metrics["train"]
    rated = outcome.rated
    torch.testing.assert_close(
        float(rated.reward_B[rated.is_good_B].mean()), metrics["rewards/chosen"][-1], rtol=1e-4, atol=1e-5
    )
    assert float(rated.is_right_E.float().mean()) == metrics["rewards/accuracies"][-1]


def test_several_losses_have_trls_weights(dpo_trainer: DPOTrainer) -> None:
    model = dpo_trainer.model
    batch = next(iter(dpo_trainer.get_train_dataloader()))
    tokens = batch["input_ids"], batch["completion_mask"], batch["attention_mask"]
    log_probs_B, counts_B = measure(model, *tokens)
    with reference(model):
        reference_B, _ = measure(model, *tokens)
    settings = DpoSpec(beta=BETA, loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    dpo_trainer.loss_types, dpo_trainer.loss_weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]

    outcome = make_objective(settings).compute(
        AnswerScores(*map(alternate, (log_probs_B, counts_B, reference_B)))
    )

    expected = dpo_trainer.compute_loss(model, batch).detach()
    torch.testing.assert_close(outcome.losses_E.mean(), expected, rtol=1e-4, atol=1e-5)


def test_smoothing_of_the_sigmoid_is_conservative_dpo() -> None:
    answers = AnswerScores(torch.tensor([2.0, 1.0]), torch.ones(2), torch.tensor([1.0, 3.0]))
    loss = make_objective(DpoSpec(beta=0.5, label_smoothing=0.2)).compute(answers).losses_E
    expected = -0.8 * functional.logsigmoid(torch.tensor(1.5)) - 0.2 * functional.logsigmoid(
        torch.tensor(-1.5)
    )
    torch.testing.assert_close(loss, expected[None])


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_ktos_loss_is_trls(models_folder: Path, options: dict[str, Any], loss_type: Any) -> None:
    rows = [
        {"prompt": turns(row.prompt), "completion": turns(row.completion), "label": row.label}
        for row in labelled(4)
    ]
    weights = {"desirable_weight": 0.7, "undesirable_weight": 1.3}
    trainer = KTOTrainer(
        model=make_model(models_folder / NAME),
        args=KTOConfig(loss_type=loss_type, **weights, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(models_folder / NAME),
    )
    perturb(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))

    outcome = _kto_outcome(trainer.model, batch, KtoSpec(beta=BETA, loss_type=loss_type, **weights))

    expected = trainer.compute_loss(trainer.model, batch).detach()
    torch.testing.assert_close(outcome.losses_E.mean(), expected, rtol=1e-4, atol=1e-5)


def _kto_outcome(model: PeftModel, batch: dict[str, torch.Tensor], settings: KtoSpec) -> PreferenceLosses:
    kinds = ["", "KL_"] if settings.loss_type == "kto" else [""]
    measured = []
    for kind in kinds:
        tokens = batch[f"{kind}input_ids"], batch[f"{kind}completion_mask"], batch[f"{kind}attention_mask"]
        log_probs_E, counts_E = measure(model, *tokens)
        with reference(model):
            measured.append((log_probs_E, counts_E, measure(model, *tokens)[0]))
    adjacent = [torch.stack(of_kinds, dim=1).flatten() for of_kinds in zip(*measured, strict=True)]
    is_desirable_B = batch["label"].bool().repeat_interleave(len(kinds))
    return make_objective(settings).compute(AnswerScores(*adjacent, is_desirable_B))


def test_orpos_odds_ratio_is_trls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOTrainer

    mean_B, tokens_B = (
        torch.tensor([-0.5, -1.5, -2.0, -0.1, -1e-4, -30.0]),
        torch.tensor([4.0, 3, 2, 9, 5, 1]),
    )
    trainer = ORPOTrainer.__new__(ORPOTrainer)
    trainer.beta = BETA
    trainer.accelerator = type("Accelerator", (), {"device": torch.device("cpu")})()
    ratios, *_rest = trainer.odds_ratio_loss(mean_B[::2], mean_B[1::2])

    outcome = make_objective(OrpoSpec(beta=BETA)).compute(AnswerScores(mean_B * tokens_B, tokens_B))

    torch.testing.assert_close(outcome.losses_E, -mean_B[::2] - ratios)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            DpoSpec(loss_type=name, label_smoothing=0.1 if name == "exo_pair" else 0.0)
            for name in get_args(DpoLoss)
        ),
        KtoSpec(),
        KtoSpec(loss_type="apo_zero_unpaired"),
        OrpoSpec(),
    ],
    ids=lambda settings: f"{type(settings).__name__}-{getattr(settings, 'loss_type', '')}",
)
@pytest.mark.parametrize("log_prob", [0.0, -1e-9, -1e4])
def test_gradients_of_certain_and_of_hopeless_answers_are_finite(settings: Any, log_prob: float) -> None:
    log_probs_B = torch.full((4,), log_prob, requires_grad=True)
    answers = AnswerScores(
        log_probs_B, torch.ones(4), torch.full((4,), -5.0), torch.tensor([True, False, False, False])
    )
    make_objective(settings).compute(answers).losses_E.sum().backward()
    assert log_probs_B.grad is not None
    assert log_probs_B.grad.isfinite().all()
