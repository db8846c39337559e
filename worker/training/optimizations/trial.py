"""Checks an optimization on a few rows of the job: its loss and gradients against those of the libraries.

A new adapter's B is zero, which would hide any error in the gradient of A; so B is random, and large, when
gradients are compared. Losses are also compared with B as it is after one step of the optimizer, so small
that a sum in the wrong order rounds it away. Knows what an optimization's batches look like (`Layout`), not
what it replaces.

N: learned tokens of the trial's rows.
"""

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel

from worker.decoder.random_state import RandomState
from worker.training.batches import Collator, Example
from worker.training.loss import TokenScores
from worker.training.trainer import AdapterTrainer

# `padded`: one batch of all rows. `alone`: a batch for each row, without padding. `padding-free`: one batch
# of all rows, concatenated by the trainer's collator.
Layout = Literal["padded", "alone", "padding-free"]
ComputeLoss = Callable[[], torch.Tensor]

ROWS = 3
_MAX_ROW_TOKENS = 48
# Largest difference of the gradients, as a share of their Euclidean norm. In 16 bits a deep model amplifies
# rounding (32 random layers: 6%), so there two unoptimized passes are compared first, and an optimization may
# differ three times as much, up to a limit. (Those two round alike where a row is not padded.)
_TOLERANCE = 1e-3
_TOLERANCE_IN_16_BITS = 0.05
_MAX_TOLERANCE_IN_16_BITS = 0.2
# Keeps gradients in float16 from vanishing; harmless for other types.
_LOSS_SCALE = 1024
_B_STD = 0.02
# After one step of the optimizer the mean loss may be off by a share of what the step changes, by a share of
# itself, and by so many standard errors, which two unoptimized passes show.
_GAIN_TOLERANCE = 0.05
_LOSS_TOLERANCE = 1e-5
_STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class TrialPass:
    """Loss and gradients by parameter name of one forward and backward pass."""

    loss: float
    gradients: dict[str, torch.Tensor]


@dataclass(frozen=True)
class StepEffect:
    """The losses of the learned tokens after one step of the optimizer, without optimizations, in float64.

    `gain`: by how much the step lowers the mean loss. `first_order_gain`: by how much it would without
    rounding, by the gradient: in 16 bits PEFT rounds away much of what a small B adds (half of it, in 32
    random layers). `noise_N`: how the losses of two unoptimized passes differ, which are rounded differently.
    """

    losses_N: torch.Tensor
    gain: float
    first_order_gain: float
    noise_N: torch.Tensor


class Trial:
    """Compares passes with an optimization to passes without any, over the same rows.

    `compares_dropout`: optimizations with a padded batch must reproduce the dropout masks of PEFT's layers.
    """

    def __init__(self, trainer: AdapterTrainer, examples: list[Example], *, compares_dropout: bool) -> None:
        self._trainer = trainer
        self.world = trainer.world
        self._compares_dropout = compares_dropout
        self._examples = examples
        self._padding = Collator(trainer.processing_class.pad_token_id)
        self._reference: dict[bool, TrialPass] = {}  # with dropout as the job has it (True), and without
        self._tolerance = 0.0
        self._matrices = {
            name: weight for name, weight in trainer.model.named_parameters() if "lora_B" in name
        }
        self._random_b: dict[str, torch.Tensor] = {}
        self._stepped_b: dict[str, torch.Tensor] = {}
        self._step: StepEffect | None = None

    def run_reference(self) -> None:
        """Make the passes that optimizations are compared with, and find the tolerance."""
        trainer = self._trainer
        self._run_reference_step()
        self._set_b(self._random_b)
        self._reference = {is_training: self._run("padded", is_training) for is_training in (True, False)}
        is_exact = _computes_in_32_bits(trainer.model, trainer.accelerator.mixed_precision)
        alone = None if is_exact else self._run("alone", is_training=False)
        self._tolerance = find_tolerance(self._reference[False], alone)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Within this context the trial may change B; then B, random state and training mode are restored."""
        model = self._trainer.model
        before = {name: weight.detach().clone() for name, weight in self._matrices.items()}
        random = RandomState()
        was_training = model.training
        try:
            torch.manual_seed(0)
            self._random_b = {name: torch.randn_like(b) * _B_STD for name, b in before.items()}
            yield
        finally:
            self._set_b(before)
            model.train(was_training)
            random.restore()

    def find_fault(self, layout: Layout, *, passes: int = 1) -> str | None:
        """How loss or gradients with the present optimizations differ from the reference; None: they agree.

        `passes`: the batch is computed so many times, and the last time compared. Where that is done without
        dropout, one more pass has it as the job does: an optimization may not support the base model's own.
        """
        is_training = layout == "padded" and self._compares_dropout
        try:
            if not is_training and passes == 1 and not math.isfinite(self._run(layout, True).loss):
                return "the loss with dropout is not finite"
            for _ in range(passes):
                found = self._run(layout, is_training)
            self._set_b(self._stepped_b)
            stepped_N = self._measure_losses(layout)
        # A model's own code, a kernel or a library may raise anything; the job then trains without it.
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        finally:
            self._set_b(self._random_b)
        assert self._step is not None
        return find_difference(
            self._reference[is_training], found, self._tolerance
        ) or find_difference_after_step(self._step, stepped_N)

    def _run_reference_step(self) -> None:
        """Make the optimizer's first step for B, by the sign of its gradient as Adam's, and measure it."""
        trainer = self._trainer
        before = self._run("padded", is_training=False)
        rate = trainer.args.learning_rate
        self._stepped_b = {
            name: weight.detach() - rate * before.gradients[name].sign()
            if name in before.gradients
            else weight.detach().clone()
            for name, weight in self._matrices.items()
        }
        self._set_b(self._stepped_b)
        losses_N, alone_N = self._measure_losses("padded"), self._measure_losses("alone")
        slope = sum(
            float(before.gradients[name].abs().sum()) for name in self._matrices.keys() & before.gradients
        )
        self._step = StepEffect(
            losses_N,
            gain=before.loss - float(losses_N.mean()),
            first_order_gain=rate * slope / _LOSS_SCALE,
            noise_N=alone_N - losses_N,
        )

    def _set_b(self, matrices: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._matrices.items():
                weight.copy_(matrices[name])

    @torch.no_grad()
    def _measure_losses(self, layout: Layout) -> torch.Tensor:
        """The losses [N] of the learned tokens, without dropout."""
        self._trainer.model.train(False)
        return torch.cat([-scores.log_probs_N for scores in self._score(layout)]).double()

    def _run(self, layout: Layout, is_training: bool) -> TrialPass:
        self._trainer.model.train(is_training)

        def compute_loss() -> torch.Tensor:
            return mean_loss(self._score(layout))

        return run_pass(self._trainer.model, compute_loss)

    def _score(self, layout: Layout) -> list[TokenScores]:
        trainer = self._trainer
        return [
            trainer.score(trainer._prepare_inputs(collate(examples)))
            for collate, examples in self._lay_out(layout)
        ]

    def _lay_out(
        self, layout: Layout
    ) -> list[tuple[Callable[[list[Example]], dict[str, Any]], list[Example]]]:
        if layout == "alone":
            return [(self._padding, [example]) for example in self._examples]
        return [(self._padding if layout == "padded" else self._trainer.data_collator, self._examples)]


def shorten_examples(examples: list[Example]) -> list[Example]:
    """The first rows, cut to different short lengths; all their tokens but the first are learned."""
    found: list[Example] = []
    for place, example in enumerate(examples[:ROWS]):
        ids = list(example["input_ids"])[: max(2, _MAX_ROW_TOKENS // (1 + place))]
        found.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return found


def mean_loss(batches: Sequence[TokenScores]) -> torch.Tensor:
    """The mean loss of all learned tokens, those of a mixture's router included."""
    tokens = [len(scores.log_probs_N) for scores in batches]
    sums = [-scores.log_prob_sum for scores in batches]
    sums += [
        scores.balancing * count
        for scores, count in zip(batches, tokens, strict=True)
        if scores.balancing is not None
    ]
    return torch.stack(sums).sum() / sum(tokens)


def run_pass(model: PeftModel, compute_loss: ComputeLoss) -> TrialPass:
    """Loss and gradients from a fixed seed; the model's gradients and the random state are reset after it."""
    before = RandomState()
    torch.manual_seed(0)
    try:
        loss = compute_loss()
        (loss * _LOSS_SCALE).backward()
        trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        gradients = {name: weight.grad for name, weight in trained if weight.grad is not None}
        return TrialPass(loss.item(), gradients)
    finally:
        model.zero_grad(set_to_none=True)
        before.restore()


def find_tolerance(reference: TrialPass, unpadded: TrialPass | None) -> float:
    """How much the gradients of an optimization may differ, as a share of their norm.

    `unpadded`: the reference over each row alone, which differs by rounding; None where nothing is rounded.
    """
    if unpadded is None:
        return _TOLERANCE
    return min(max(_TOLERANCE_IN_16_BITS, 3 * distance(reference, unpadded)), _MAX_TOLERANCE_IN_16_BITS)


def find_difference(reference: TrialPass, found: TrialPass, tolerance: float) -> str | None:
    """What differs by more than the tolerance, in words; None: nothing does."""
    if reference.gradients.keys() != found.gradients.keys():
        return "gradients are missing"
    # Written so that a NaN fails too.
    if not abs(found.loss - reference.loss) <= tolerance * abs(reference.loss):
        return f"the loss is {found.loss:.6g} and should be {reference.loss:.6g}"
    if not (away := distance(reference, found)) <= tolerance:
        return f"the gradients are off by {away:.2g} of their norm, {tolerance:.2g} would be rounding"
    return None


def find_difference_after_step(expected: StepEffect, losses_N: torch.Tensor) -> str | None:
    """What differs by more than rounding after one step of the optimizer, in words; None: nothing does.

    The step may lower the loss by as much as without optimizations, as without rounding, or by anything
    between the two.
    """
    standard_error = float(expected.noise_N.square().mean().sqrt()) / math.sqrt(len(losses_N))
    least, most = sorted((expected.gain, expected.first_order_gain))
    tolerance = (
        _GAIN_TOLERANCE * max(abs(least), abs(most))
        + _LOSS_TOLERANCE * float(expected.losses_N.mean())
        + _STANDARD_ERRORS * standard_error
    )
    gain = expected.gain - float((losses_N - expected.losses_N).mean())
    if not least - tolerance <= gain <= most + tolerance:
        return (
            f"one step of the optimizer lowers the loss by {gain:.3g}; by {expected.gain:.3g} without "
            f"optimizations, {expected.first_order_gain:.3g} without rounding, and {tolerance:.2g} more or "
            "less would be rounding"
        )
    return None


def distance(reference: TrialPass, other: TrialPass) -> float:
    """The Euclidean norm of the difference of all gradients, as a share of the reference's norm."""
    names = sorted(reference.gradients)
    away = _norm(other.gradients[name] - reference.gradients[name] for name in names)
    of = _norm(reference.gradients[name] for name in names)
    return away / of if of else math.inf * away if away else 0.0


def _computes_in_32_bits(model: PeftModel, mixed_precision: str) -> bool:
    """Whether nothing is rounded to 16 bits; `mixed_precision`: accelerate's name of it."""
    return mixed_precision == "no" and model.dtype is torch.float32


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    norms = [tensor.float().norm() for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0
