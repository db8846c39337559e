"""Applies the optimizations of a job's plan, each after a trial has shown that it computes the same.

One event names what is used, and why the rest is left out. What fails its trial is undone. Each optimization
replaces something of PEFT, TRL, transformers or bitsandbytes while its context is open (decision 20).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn

from app.core.settings import TrainingPath
from app.core.specs.job import TrainingSpec
from worker.models.frozen_weights import Dequantizers
from worker.planning.optimizations import OptimizationPlan, VarlenKernel, describe_family, plan_optimizations
from worker.training.attempt import TrainingAttempt
from worker.training.batches import PaddingFreeCollator
from worker.training.memory import SpareMemory
from worker.training.optimizations import bnb_optimizer, liger, trial, varlen_attention
from worker.training.optimizations.decoder_graphs import GraphedDecoder, own_stream
from worker.training.optimizations.dequantized_cache import DequantizedCache
from worker.training.optimizations.lora.group import LIBRARY_KERNELS, LoraKernels
from worker.training.optimizations.lora.linears import FusedLora
from worker.training.trainer import AdapterTrainer

_VARLEN: dict[VarlenKernel, varlen_attention.VarlenAttention] = {
    "Triton": varlen_attention.triton_varlen,
    "PyTorch varlen_attn": varlen_attention.torch_varlen,
    "row by row": varlen_attention.row_by_row,
}


@dataclass(frozen=True)
class Optimization:
    """Applied while `context` is open. `layout`: the batches of its trial; dropout can be compared where they
    are padded. `trial_passes`: how often a batch must come before it is computed in the optimized form."""

    name: str
    context: AbstractContextManager[None]
    layout: trial.Layout = "padded"
    trial_passes: int = 1


@dataclass
class AppliedOptimizations:
    """What a job trains with; closing `stack` leaves the model and the libraries as they were."""

    names: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # names with the reason
    stack: ExitStack = field(default_factory=ExitStack)


def apply_optimizations(
    attempt: TrainingAttempt, trainer: AdapterTrainer, training: TrainingSpec, path: TrainingPath
) -> ExitStack:
    """Apply every planned optimization that passes its trial. Returns a stack that undoes them when closed.

    `training`: the spec's, without `auto` for batch size and checkpointing.
    """
    family = describe_family(trainer.model.get_base_model())
    spec = attempt.request.spec.model_copy(update={"training": training})
    plan = plan_optimizations(spec, attempt.device, family, path, is_alone=attempt.request.is_alone)
    applied = apply_plan(trainer, plan)
    if plan.optimizer_without_sync:
        applied.stack.enter_context(bnb_optimizer.without_sync(trainer))
        applied.names.append("bitsandbytes optimizer without synchronization")
    if applied.failed:
        attempt.warn(
            "fast_path_wrong", f"Not used, since a trial of it failed here: {'; '.join(applied.failed)}."
        )
    left_out = f"; left out: {'; '.join(plan.left_out)}" if plan.left_out else ""
    attempt.say(f"Optimizations: {'; '.join(applied.names) or 'none'}{left_out}.")
    return applied.stack


def apply_plan(trainer: AdapterTrainer, plan: OptimizationPlan) -> AppliedOptimizations:
    """Try the optimizations of a plan on a few rows of the job; those that pass stay applied."""
    applied = AppliedOptimizations()
    optimizations = list_optimizations(trainer, plan)
    if not optimizations:
        return applied
    examples = trial.shorten_examples(list(islice(trainer.train_dataset, trial.ROWS)))
    running = trial.Trial(trainer, examples, compares_dropout=plan.draws_peft_masks)
    with running.restoring():
        running.run_reference()
        batches_stay_padded = False
        for alternatives in optimizations:
            if alternatives[0].layout == "padding-free" and batches_stay_padded:
                continue  # it needs padding-free batches
            if not any(_try(optimization, running, applied) for optimization in alternatives):
                batches_stay_padded = alternatives[0].layout == "padding-free"
    return applied


def _try(optimization: Optimization, running: trial.Trial, applied: AppliedOptimizations) -> bool:
    """Apply an optimization; undo it where its trial fails. Returns whether it stays."""
    with ExitStack() as attempted:
        attempted.enter_context(optimization.context)
        fault = running.find_fault(optimization.layout, passes=optimization.trial_passes)
        if fault is None:
            applied.names.append(optimization.name)
            applied.stack.push(attempted.pop_all())
        else:
            applied.failed.append(f"{optimization.name} ({fault})")
    return fault is None


def list_optimizations(trainer: AdapterTrainer, plan: OptimizationPlan) -> list[list[Optimization]]:
    """The optimizations of a plan in the order of their trials, each with its alternatives, best first."""
    optimizations = []
    linears = _AppliedLora()
    if plan.fused_lora_dtype is not None:
        optimizations.append(
            [
                Optimization(name, _fused_lora(trainer, linears, plan, kernels))
                for name, kernels in _lora_kernels(plan)
            ]
        )
    if plan.liger:
        alternatives = [Optimization("Liger kernels", liger.applied(trainer.model))]
        if liger.has_adapted_experts(trainer.model):
            context = liger.applied(trainer.model, with_experts=False)
            alternatives.append(Optimization("Liger kernels, except for the experts", context))
        optimizations.append(alternatives)
    if plan.fused_residuals:
        from worker.training.optimizations import residuals  # needs Triton

        context = residuals.applied(trainer.model, linears)
        optimizations.append([Optimization("residual additions fused into other kernels", context)])
    if plan.varlen_kernels:
        optimizations.append(
            [
                Optimization(
                    f"padding-free batches (varlen attention: {kernel})",
                    _padding_free(trainer, _VARLEN[kernel]),
                    "padding-free",
                )
                for kernel in plan.varlen_kernels
            ]
        )
    if plan.cuda_graphs:
        graphs = Optimization(
            "CUDA graphs for short batches", _cuda_graphs(trainer), "padding-free", trial_passes=2
        )
        optimizations.append([graphs])
    return optimizations


def _lora_kernels(plan: OptimizationPlan) -> Iterator[tuple[str, LoraKernels]]:
    """(name, kernels) of the LoRA function, fastest first; the last alternative is the libraries' own."""
    name = "LoRA in one autograd function"
    if plan.triton_dequantize:
        from worker.kernels import dequantize, low_rank_matmul  # need Triton

        dequantizers = Dequantizers(
            dequantize.dequantize, dequantize.dequantize_with_b, dequantize.dequantize_with_a
        )
        in_triton = f"{name}, 4-bit weights dequantized by one Triton kernel"
        yield in_triton, LoraKernels(dequantizers, low_rank_matmul)
        # The low-rank kernels need more shared memory than some GPUs have.
        yield f"{in_triton}, matrix products by PyTorch", LoraKernels(dequantizers, None)
    yield name, LIBRARY_KERNELS


@dataclass
class _AppliedLora:
    """The LoRA function of the model while it is applied, for optimizations that build on it."""

    fast: FusedLora | None = None

    def add_next(self, layer: nn.Module, summand: torch.Tensor) -> bool:
        return self.fast is not None and self.fast.add_next(layer, summand)

    def input_padding(self, *layers: nn.Module) -> int:
        return self.fast.input_padding(*layers) if self.fast else 0

    def output_grad_padding(self, layer: nn.Module) -> int:
        return self.fast.output_grad_padding(layer) if self.fast else 0


@contextmanager
def _fused_lora(
    trainer: AdapterTrainer, linears: _AppliedLora, plan: OptimizationPlan, kernels: LoraKernels
) -> Iterator[None]:
    assert plan.fused_lora_dtype is not None
    fast = FusedLora(trainer.model, plan.fused_lora_dtype, kernels)
    with ExitStack() as stack:
        stack.callback(fast.remove)
        linears.fast = fast
        stack.callback(setattr, linears, "fast", None)
        if plan.dequantized_cache:
            cache = DequantizedCache(fast, trainer.spare_memory, trainer.say)
            trainer.add_callback(cache)
            stack.callback(trainer.remove_callback, cache)
            stack.enter_context(_spare_memory(trainer, cache))
        yield


@contextmanager
def _cuda_graphs(trainer: AdapterTrainer) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(own_stream())
        graphed = GraphedDecoder(trainer.model)
        stack.callback(graphed.remove)
        stack.enter_context(_spare_memory(trainer, graphed))
        yield


@contextmanager
def _spare_memory(trainer: AdapterTrainer, memory: SpareMemory) -> Iterator[None]:
    trainer.spare_memory.append(memory)
    try:
        yield
    finally:
        trainer.spare_memory.remove(memory)


@contextmanager
def _padding_free(trainer: AdapterTrainer, attention: varlen_attention.VarlenAttention) -> Iterator[None]:
    varlen_attention.register(attention)
    model = trainer.model.get_base_model()
    before, collator = model.config._attn_implementation, trainer.data_collator
    model.set_attn_implementation(varlen_attention.NAME)
    trainer.data_collator = PaddingFreeCollator()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        trainer.data_collator = collator
