"""Takes the fast ways that a job's choice names, each after it was seen to compute what the plain one does.

One event says what is used, and why the rest is not. What fails its trial is taken out again.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn
from trl.trainer import utils as trl_utils

from app.core.settings import TrainingPath
from app.core.specs.job import TrainingSpec
from worker.models.frozen_weights import Unpacking
from worker.planning.optimizations import AttentionKernel, Choice, choose, describe_family
from worker.training.attempt import Attempt
from worker.training.batches import Collator, Example, JoiningCollator, model_inputs
from worker.training.memory import SpareMemory
from worker.training.optimizations import (
    bnb_optimizer,
    liger,
    precomputed_targets,
    trial as check,
    varlen_attention,
)
from worker.training.optimizations.decoder_graphs import GraphedDecoder, own_stream
from worker.training.optimizations.dequantized_cache import KeepWeights
from worker.training.optimizations.lora.group import LIBRARIES, Kernels
from worker.training.optimizations.lora.linears import FastLinears
from worker.training.optimizations.one_pass_loss import LogProbFunction
from worker.training.optimizations.trial import Pass
from worker.training.trainer import AdapterTrainer

_KERNELS: dict[AttentionKernel, varlen_attention.Kernel] = {
    "tiles of rows": varlen_attention.tiled,
    "flash": varlen_attention.flash,
    "row by row": varlen_attention.row_by_row,
}


Layout = Literal["padded", "alone", "joined"]


@dataclass(frozen=True)
class Way:
    """A fast way: on while its context is. Where it takes a padded batch, even dropout can be compared.
    `passes`: how often a batch must come until it is computed this way."""

    name: str
    context: AbstractContextManager[None]
    layout: Layout = "padded"
    passes: int = 1


@dataclass
class Taken:
    """What a job trains with. Leaving `stack` leaves the model and TRL as they were."""

    used: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)


def set_up(
    attempt: Attempt, trainer: AdapterTrainer, training: TrainingSpec, path: TrainingPath
) -> ExitStack:
    """Take every fast way that applies and is right; the answer, when closed, undoes it.

    `training`: the spec's, without `auto` in its passes.
    """
    family = describe_family(trainer.model.get_base_model())
    spec = attempt.request.spec.model_copy(update={"training": training})
    choice = choose(spec, attempt.device, family, path, is_alone=attempt.request.is_alone)
    taken = take(trainer, choice)
    if choice.unwaiting_optimizer:
        taken.stack.enter_context(bnb_optimizer.in_order(trainer))
        taken.used.append("an optimizer that does not wait")
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
    examples = check.make_examples(list(islice(trainer.train_dataset, check.ROWS)))
    trial = Trial(trainer, examples, compares_dropout=choice.draws_pefts_masks)
    with check.probing(trainer.model):
        trial.run_plainly()
        is_joined_wrong = False
        for alternatives in ways:
            if alternatives[0].layout == "joined" and is_joined_wrong:
                continue  # batches stay padded, and it is for others
            if not any(_try(way, trial, taken) for way in alternatives):
                is_joined_wrong = alternatives[0].layout == "joined"
    return taken


def _try(way: Way, trial: "Trial", taken: Taken) -> bool:
    """Take a way if it is right."""
    with ExitStack() as attempted:
        attempted.enter_context(way.context)
        reason = trial.find_reason(way)
        if reason is None:
            taken.used.append(way.name)
            taken.stack.push(attempted.pop_all())
        else:
            taken.wrong.append(f"{way.name} ({reason})")
    return reason is None


def make_ways(trainer: AdapterTrainer, choice: Choice) -> list[list[Way]]:
    """The ways that a choice names, each with those that stand in for it where it is wrong."""
    ways = []
    linears = _PresentLinears()
    if choice.linears is not None:
        ways.append(
            [Way(name, _linears(trainer, linears, choice, kernels)) for name, kernels in _kernels(choice)]
        )
    if choice.liger:
        ways.append([Way("Liger's kernels", liger.applied(trainer.model))])
    if choice.residuals:
        from worker.training.optimizations import residuals  # needs Triton

        ways.append([Way("additions within other kernels", residuals.applied(trainer.model, linears))])
    if choice.one_pass_loss:
        ways.append([Way("the loss in one pass", _one_pass_loss())])
    if choice.attention:
        ways.append(
            [
                Way(
                    f"batches without padding, attention {kernel}",
                    _joined_rows(trainer, _KERNELS[kernel], tells_targets=choice.known_targets),
                    "joined",
                )
                for kernel in choice.attention
            ]
        )
    if choice.graphs:
        ways.append([Way("CUDA graphs for short batches", _graphs(trainer), "joined", passes=2)])
    return ways


def _kernels(choice: Choice) -> Iterator[tuple[str, Kernels]]:
    """What the LoRA function may be made of: libraries stand in for kernels of our own."""
    if choice.unpacks_in_one_kernel:
        from worker.kernels import dequantize, low_rank_matmul  # need Triton

        unpack = Unpacking(dequantize.unpack, dequantize.unpack_beside, dequantize.unpack_above)
        ours = Kernels(unpack, low_rank_matmul)
        yield "LoRA in one function, weights unpacked by one kernel", ours
        # Products need more shared memory than some GPUs have.
        yield "LoRA in one function, only weights by a kernel", Kernels(unpack, None)
    yield "LoRA in one function", LIBRARIES


class Trial:
    """Passes over a few rows. `compares_dropout`: of a padded batch, every way drops out the same."""

    def __init__(self, trainer: AdapterTrainer, examples: list[Example], *, compares_dropout: bool) -> None:
        self._trainer = trainer
        self._compares_dropout = compares_dropout
        self._examples = examples
        self._padding = Collator(trainer.processing_class.pad_token_id)
        self._plain: dict[bool, Pass] = {}
        self._tolerance = 0.0

    def run_plainly(self) -> None:
        """What every way is compared with: with dropout as the job has it (True), and without."""
        trainer = self._trainer
        self._plain = {is_training: self._run("padded", is_training) for is_training in (True, False)}
        is_exact = check.computes_in_32_bits(trainer.model, trainer.accelerator.mixed_precision)
        alone = None if is_exact else self._run("alone", is_training=False)
        self._tolerance = check.find_tolerance(self._plain[False], alone)

    def find_reason(self, way: Way) -> str | None:
        """Why a way that is on now must not be used; None: it computes what the plain one does."""
        is_training = way.layout == "padded" and self._compares_dropout
        try:
            for _ in range(way.passes):
                found = self._run(way.layout, is_training)
        # A model's own code, a kernel or a library may fail in any way; then it trains as it always did.
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        return check.find_difference(self._plain[is_training], found, self._tolerance)

    def _run(self, layout: Layout, is_training: bool) -> Pass:
        """Loss and gradients of all rows, with what is on now."""
        trainer = self._trainer
        batches = [
            trainer._prepare_inputs(model_inputs(collate(examples)))
            for collate, examples in self._lay_out(layout)
        ]
        trainer.model.train(is_training)

        def compute_loss() -> torch.Tensor:
            with trainer.accelerator.autocast():
                outputs = [trainer.model(**batch, use_cache=False, fused_lm_head=True) for batch in batches]
            tokens = torch.stack([output.label_mask.sum() for output in outputs])
            loss: torch.Tensor = (
                torch.stack([output.loss for output in outputs]) * tokens
            ).sum() / tokens.sum()
            return loss

        return check.run_pass(trainer.model, compute_loss)

    def _lay_out(
        self, layout: Layout
    ) -> list[tuple[Callable[[list[Example]], dict[str, Any]], list[Example]]]:
        if layout == "alone":
            return [(self._padding, [example]) for example in self._examples]
        return [(self._padding if layout == "padded" else self._trainer.data_collator, self._examples)]


@dataclass
class _PresentLinears:
    """The LoRA function for ways that build on it, as far as it is in the model."""

    fast: FastLinears | None = None

    def add_next(self, layer: nn.Module, summand: torch.Tensor) -> bool:
        return self.fast is not None and self.fast.add_next(layer, summand)

    def room_before(self, *layers: nn.Module) -> int:
        return self.fast.room_before(*layers) if self.fast else 0

    def room_behind(self, layer: nn.Module) -> int:
        return self.fast.room_behind(layer) if self.fast else 0


@contextmanager
def _linears(
    trainer: AdapterTrainer, present: _PresentLinears, choice: Choice, kernels: Kernels
) -> Iterator[None]:
    assert choice.linears is not None
    fast = FastLinears(trainer.model, choice.linears, kernels)
    with ExitStack() as stack:
        stack.callback(fast.remove)
        present.fast = fast
        stack.callback(setattr, present, "fast", None)
        if choice.kept_weights:
            keeper = KeepWeights(fast, trainer.spare_memory, trainer.say)
            trainer.add_callback(keeper)
            stack.callback(trainer.remove_callback, keeper)
            stack.enter_context(_spare(trainer, keeper))
        yield


@contextmanager
def _one_pass_loss() -> Iterator[None]:
    plain = trl_utils._ChunkedLogProbFunction
    trl_utils._ChunkedLogProbFunction = LogProbFunction(plain)
    try:
        yield
    finally:
        trl_utils._ChunkedLogProbFunction = plain


@contextmanager
def _graphs(trainer: AdapterTrainer) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(own_stream())
        graphed = GraphedDecoder(trainer.model)
        stack.callback(graphed.remove)
        stack.enter_context(_spare(trainer, graphed))
        yield


@contextmanager
def _spare(trainer: AdapterTrainer, memory: SpareMemory) -> Iterator[None]:
    trainer.spare_memory.append(memory)
    try:
        yield
    finally:
        trainer.spare_memory.remove(memory)


@contextmanager
def _joined_rows(
    trainer: AdapterTrainer, kernel: varlen_attention.Kernel, *, tells_targets: bool
) -> Iterator[None]:
    varlen_attention.register(kernel)
    model = trainer.model.get_base_model()
    attention, collator = model.config._attn_implementation, trainer.data_collator
    model.set_attn_implementation(varlen_attention.NAME)
    trainer.data_collator = JoiningCollator(tells_targets=tells_targets)
    try:
        with precomputed_targets.applied(trainer.model) if tells_targets else nullcontext():
            yield
    finally:
        model.set_attn_implementation(attention)
        trainer.data_collator = collator
