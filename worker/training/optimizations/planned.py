"""The optimizations of a job's plan as context managers, in the order of their trials.

Each replaces something of PEFT, TRL, transformers or bitsandbytes while its context is open (decision 20).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from worker.decoder.operations import Operations, TorchOperations
from worker.models.frozen_weights import Dequantizers
from worker.planning.optimizations import OptimizationPlan, VarlenKernel
from worker.training.batches import PaddingFreeCollator
from worker.training.memory import SpareMemory
from worker.training.optimizations import trial, varlen_attention
from worker.training.optimizations.decoder_graphs import GraphedDecoder, own_stream
from worker.training.optimizations.dequantized_cache import DequantizedCache, FourBitWeights
from worker.training.optimizations.explicit_decoder import ExplicitDecoder
from worker.training.optimizations.lora_layers import LIBRARY_KERNELS, FusedLora, LoraKernels
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


def list_optimizations(trainer: AdapterTrainer, plan: OptimizationPlan) -> list[list[Optimization]]:
    """The optimizations of a plan in the order of their trials, each with its alternatives, best first."""
    if plan.explicit_decoder:
        optimizations = [_explicit_decoders(trainer, plan)]
    else:
        optimizations = list_general_optimizations(trainer, plan)
    if plan.cuda_graphs:
        graphs = Optimization("CUDA graphs", _cuda_graphs(trainer), "padding-free", trial_passes=2)
        optimizations.append([graphs])
    return optimizations


def list_general_optimizations(trainer: AdapterTrainer, plan: OptimizationPlan) -> list[list[Optimization]]:
    """Those for any family, around transformers' own layers."""
    optimizations = []
    if plan.fused_lora_dtype is not None:
        optimizations.append(
            [Optimization(name, _fused_lora(trainer, plan, kernels)) for name, kernels in _lora_kernels(plan)]
        )
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
    return optimizations


def _explicit_decoders(trainer: AdapterTrainer, plan: OptimizationPlan) -> list[Optimization]:
    """The explicit decoder by kernels, then with PyTorch's attention, then by PyTorch's functions alone."""
    _name, library_kernels = list(_lora_kernels(plan))[-1]
    fastest, slowest = plan.varlen_kernels[0], plan.varlen_kernels[-1]
    choices: list[tuple[VarlenKernel, str, Operations, LoraKernels]] = []
    if plan.triton_operations:
        from worker.decoder.fused_operations import FusedOperations  # needs Triton

        _name, kernels = next(iter(_lora_kernels(plan)))
        choices += [(attention, "Triton", FusedOperations(), kernels) for attention in (fastest, slowest)]
    choices.append((slowest, "PyTorch", TorchOperations(), library_kernels))
    return [
        Optimization(
            f"explicit decoder layers (varlen attention: {attention}; other parts: {parts})",
            _explicit_decoder(trainer, plan, operations, kernels, _VARLEN[attention]),
            "padding-free",
        )
        for attention, parts, operations, kernels in choices
    ]


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


@contextmanager
def _explicit_decoder(
    trainer: AdapterTrainer,
    plan: OptimizationPlan,
    operations: Operations,
    kernels: LoraKernels,
    attention: varlen_attention.VarlenAttention,
) -> Iterator[None]:
    assert plan.fused_lora_dtype is not None
    decoder = ExplicitDecoder(trainer.model, plan.fused_lora_dtype, operations, kernels, attention)
    before, collator = trainer.decoder, trainer.data_collator
    trainer.decoder, trainer.data_collator = decoder, PaddingFreeCollator()
    try:
        with _dequantized_cache(trainer, decoder) if plan.dequantized_cache else nullcontext():
            yield
    finally:
        trainer.decoder, trainer.data_collator = before, collator


@contextmanager
def _fused_lora(trainer: AdapterTrainer, plan: OptimizationPlan, kernels: LoraKernels) -> Iterator[None]:
    assert plan.fused_lora_dtype is not None
    fast = FusedLora(trainer.model, plan.fused_lora_dtype, kernels)
    try:
        with _dequantized_cache(trainer, fast) if plan.dequantized_cache else nullcontext():
            yield
    finally:
        fast.remove()


@contextmanager
def _dequantized_cache(trainer: AdapterTrainer, weights: FourBitWeights) -> Iterator[None]:
    cache = DequantizedCache(weights, trainer.spare_memory, trainer.say)
    trainer.add_callback(cache)
    try:
        with _spare_memory(trainer, cache):
            yield
    finally:
        trainer.remove_callback(cache)


@contextmanager
def _cuda_graphs(trainer: AdapterTrainer) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(own_stream())
        graphed = GraphedDecoder(trainer.model, trainer.decoder)
        stack.callback(graphed.release)
        stack.callback(setattr, trainer, "decoder", trainer.decoder)
        trainer.decoder = graphed
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
