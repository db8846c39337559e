"""Takes the fast ways that a job's choice names, each after it was seen to compute what the plain one does.

One event says what is used, and why the rest is not. What fails its trial is taken out again.
"""

import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from trl.trainer import utils as trl_utils

from app.core.settings import TrainingPath
from worker.training.attempt import Attempt
from worker.training.batches import Collator, Example, JoiningCollator, model_inputs
from worker.training.fast import check, row_attention
from worker.training.fast.check import Pass
from worker.training.fast.choice import AttentionKernel, Choice, choose, describe_family
from worker.training.fast.linears import FastLinears
from worker.training.fast.one_pass_loss import LogProbFunction
from worker.training.trainer import AdapterTrainer

_KERNELS: dict[AttentionKernel, row_attention.Kernel] = {
    "flash": row_attention.flash,
    "row by row": row_attention.row_by_row,
}


@dataclass(frozen=True)
class Way:
    """A fast way: on while its context is. `keeps_places`: a token lies where it lies in a padded batch, so
    that even dropout can be compared."""

    name: str
    context: AbstractContextManager[None]
    keeps_places: bool = True


@dataclass
class Taken:
    """What a job trains with. Leaving `stack` leaves the model and TRL as they were."""

    used: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)


def set_up(attempt: Attempt, trainer: AdapterTrainer, path: TrainingPath) -> ExitStack:
    """Take every fast way that applies and is right; the answer, when closed, undoes it."""
    family = describe_family(trainer.model.get_base_model())
    choice = choose(attempt.request.spec, attempt.device, family, path)
    taken = take(trainer, choice)
    if taken.wrong:
        attempt.warn(
            "fast_path_wrong", f"Not used, since a trial of it failed here: {'; '.join(taken.wrong)}."
        )
    left_out = f" Not used: {'; '.join(choice.left_out)}." if choice.left_out else ""
    attempt.say(f"Fast ways of training: {'; '.join(taken.used) or 'none'}.{left_out}")
    return taken.stack


def take(trainer: AdapterTrainer, choice: Choice) -> Taken:
    """Try the ways of a choice on a few rows of the job, and keep those that come out right."""
    taken = Taken()
    ways = make_ways(trainer, choice)
    if not ways:
        return taken
    trial = Trial(trainer, check.make_examples(list(islice(trainer.train_dataset, check.ROWS))))
    with check.probing(trainer.model):
        # With dropout as the job has it, and without.
        plain = {is_training: trial.run(is_training=is_training) for is_training in (True, False)}
        for way in ways:
            with ExitStack() as attempted:
                attempted.enter_context(way.context)
                reason = trial.find_reason(way, plain[way.keeps_places])
                if reason is None:
                    taken.used.append(way.name)
                    taken.stack.push(attempted.pop_all())
                else:
                    taken.wrong.append(f"{way.name} ({reason})")
    return taken


def make_ways(trainer: AdapterTrainer, choice: Choice) -> list[Way]:
    """The ways that a choice names."""
    ways = []
    if choice.linears is not None:
        ways.append(Way("LoRA in one function", _linears(trainer, choice.linears)))
    if choice.one_pass_loss:
        ways.append(Way("the loss in one pass", _one_pass_loss()))
    if choice.attention is not None:
        joined = _joined_rows(trainer, _KERNELS[choice.attention])
        name = f"batches without padding, attention {choice.attention}"
        ways.append(Way(name, joined, keeps_places=False))
    return ways


class Trial:
    """Passes over a few rows."""

    def __init__(self, trainer: AdapterTrainer, examples: list[Example]) -> None:
        self._trainer = trainer
        self._examples = examples
        self._padding = Collator(trainer.processing_class.pad_token_id)

    def run(self, *, is_training: bool, is_joined: bool = False) -> Pass:
        """One pass, with what is on now."""
        trainer = self._trainer
        collate = JoiningCollator() if is_joined else self._padding
        batch = trainer._prepare_inputs(model_inputs(collate(self._examples)))
        trainer.model.train(is_training)

        def compute_loss() -> torch.Tensor:
            with trainer.accelerator.autocast():
                loss: torch.Tensor = trainer.model(**batch, use_cache=False, fused_lm_head=True).loss
            return loss

        return check.run_pass(trainer.model, compute_loss)

    def find_reason(self, way: Way, plain: Pass) -> str | None:
        """Why a way that is on now must not be used; None: it computes what the plain one does."""
        try:
            found = self.run(is_training=way.keeps_places, is_joined=not way.keeps_places)
        # A model's own code, a kernel or a library may fail in any way; then it trains as it always did.
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        mixed = self._trainer.accelerator.mixed_precision
        return check.find_difference(plain, found, check.tolerance_of(self._trainer.model, mixed))


@contextmanager
def _linears(trainer: AdapterTrainer, dtype: torch.dtype) -> Iterator[None]:
    fast = FastLinears(trainer.model, dtype)
    try:
        yield
    finally:
        fast.remove()


@contextmanager
def _one_pass_loss() -> Iterator[None]:
    plain = trl_utils._ChunkedLogProbFunction
    trl_utils._ChunkedLogProbFunction = LogProbFunction(plain)
    try:
        yield
    finally:
        trl_utils._ChunkedLogProbFunction = plain


@contextmanager
def _joined_rows(trainer: AdapterTrainer, kernel: row_attention.Kernel) -> Iterator[None]:
    row_attention.register(kernel)
    model = trainer.model.get_base_model()
    attention, collator = model.config._attn_implementation, trainer.data_collator
    model.set_attn_implementation(row_attention.NAME)
    trainer.data_collator = JoiningCollator()
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        trainer.data_collator = collator
