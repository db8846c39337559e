"""How much memory a job will need, in arithmetic alone: shapes, settings and a batch in, bytes out.

It follows what the training child really does: TRL's loss in tiles of the vocabulary, PyTorch's attention,
float32 adapters under autocast, and the fast ways that the job takes (training/fast). Memory that only makes
training faster, and is given back when it runs short, is not counted: recorded graphs, weights kept unpacked.
benchmarks/estimate.py measures against it. Knows no model and no device.

T: tokens of a batch, padding counted. L: tokens of its longest sequence. H: the hidden size. V: vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.core.specs.job import LoraSpec, Optimizer, QuantizationSpec

_FLOAT32 = 4
_MASK_ALIGNMENT = 16
# TRL's loss multiplies so many tokens by so many rows of the output layer at a time.
_TILE_TOKENS = 4096
_TILE_VOCABULARY = 32768
# Without Triton the softmax of a tile is made of whole copies.
_CPU_TILES = 5
# bitsandbytes: one scale for each block of weights; with double quantization, one byte and a second scale.
_SCALE_BLOCK = 64
_SECOND_SCALE_BLOCK = 256
# bitsandbytes keeps small tensors in main form: below these sizes neither paged nor in 8 bits.
_PAGED_FROM = 100_000
_EIGHT_BITS_FROM = 4096
_STATE_BLOCK = 256
# Measured on an H100 (benchmarks/results/estimate-h100.json): the driver's own, and cuBLAS's scratch space.
CUDA_CONTEXT = 640 << 20
_CUDA_WORKSPACE = 64 << 20
_CPU_PROCESS = 900 << 20


@dataclass(frozen=True)
class ModelShape:
    """A base model with an adapter on it, in numbers. Widths are those of one layer; weights of all."""

    layers: int
    hidden: int
    heads: int
    query_width: int
    key_width: int
    mlp_width: int
    is_gated: bool
    norm_width: int  # of all norms of a layer together
    quantized_weights: int  # that QLoRA holds in 4 bits
    other_weights: int
    largest_linear: int  # weights of the largest linear layer inside the layers
    trained_sizes: tuple[int, ...]  # weights of each tensor that is trained
    adapted_inputs: int  # of all adapted linear layers together, for one token
    shared_inputs: int  # the same, counting an input that several of them share once
    ranks: int  # of all adapted linear layers together

    @property
    def trained_weights(self) -> int:
        """How many numbers are trained."""
        return sum(self.trained_sizes)


@dataclass(frozen=True)
class Precision:
    """Bytes of a number in three places."""

    model: int  # weights that are not quantized
    products: int  # inputs and results of the adapters' and attention's matrix products
    residual: int  # what one layer hands to the next


@dataclass(frozen=True)
class Batch:
    """The largest batch of a job. `scored` tokens count in the loss; a mask is there where rows differ."""

    sequences: int
    length: int
    scored: int
    has_mask: bool
    joined_tokens: int | None = None  # where rows lie one after the other, without padding and mask

    @property
    def tokens(self) -> int:
        """Padding counted."""
        return self.sequences * self.length if self.joined_tokens is None else self.joined_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a job. `paged` is not in the total: it leaves the device when others need room."""

    weights: int
    lora: int
    optimizer: int
    activations: int
    overhead: int
    paged: int

    @property
    def total(self) -> int:
        """What must fit into the device."""
        return self.weights + self.lora + self.optimizer + self.activations + self.overhead


# As training/fast/check.py makes it, rows padded and rows alone.
_TRIAL = Batch(sequences=3, length=48, scored=85, has_mask=True)
_TRIAL_ALONE = Batch(sequences=3, length=48, scored=85, has_mask=False, joined_tokens=48 + 24 + 16)


@dataclass(frozen=True)
class FastWays:
    """What a job computes otherwise than PEFT and transformers do; joined rows are told by the batch."""

    linears: bool = False  # LoRA in one function
    liger: bool = False  # norms and gated MLPs, without copies between their parts


@dataclass(frozen=True)
class Plan:
    """The settings of a job that memory hangs on."""

    precision: Precision
    quantization: QuantizationSpec
    lora: LoraSpec
    optimizer: Optimizer
    checkpointing: bool
    accumulates: bool  # several batches in an optimizer step
    is_cuda: bool
    fast: FastWays = FastWays()


def estimate(shape: ModelShape, plan: Plan, batch: Batch) -> Memory:
    """The peak, which is in the backward pass, or in the trial of the fast ways, which has no optimizer yet.

    The adapter's share counts its gradients.
    """
    optimizer, paged = optimizer_bytes(shape.trained_sizes, plan.optimizer, is_cuda=plan.is_cuda)
    activations = activation_bytes(shape, plan, batch)
    if plan.fast != FastWays():
        activations = max(activations, trial_bytes(shape, plan) - optimizer)
    return Memory(
        weights=weight_bytes(shape, plan.quantization, plan.precision),
        lora=shape.trained_weights * (_FLOAT32 * 2 + (plan.precision.products if plan.fast.linears else 0)),
        optimizer=optimizer,
        activations=activations,
        overhead=CUDA_CONTEXT + _CUDA_WORKSPACE if plan.is_cuda else _CPU_PROCESS,
        paged=paged,
    )


def weight_bytes(shape: ModelShape, quantization: QuantizationSpec, precision: Precision) -> int:
    """The frozen base model: 4-bit weights with their scales, and what stays in 16 bits (32 on a CPU)."""
    if not quantization.load_in_4bit:
        return (shape.quantized_weights + shape.other_weights) * precision.model
    scales = shape.quantized_weights // _SCALE_BLOCK
    scale_bytes = scales * _FLOAT32
    if quantization.bnb_4bit_use_double_quant:
        scale_bytes = scales + scales // _SECOND_SCALE_BLOCK * _FLOAT32
    return shape.quantized_weights // 2 + scale_bytes + shape.other_weights * precision.model


def optimizer_bytes(sizes: Sequence[int], optimizer: Optimizer, *, is_cuda: bool) -> tuple[int, int]:
    """(bytes that stay on the device, bytes of paged memory) of the optimizer's state."""
    if optimizer == "sgd":
        return 0, 0
    if optimizer == "adafactor":
        # One row and one column for each matrix: about nothing.
        return 0, 0
    states = 1 if "lion" in optimizer else 2
    resident = paged = 0
    for size in sizes:
        in_8_bits = optimizer.endswith("8bit") and size >= _EIGHT_BITS_FROM
        state_bytes = states * (size + size // _STATE_BLOCK * _FLOAT32 if in_8_bits else size * _FLOAT32)
        if is_cuda and optimizer.startswith("paged") and size >= _PAGED_FROM:
            paged += state_bytes
        else:
            resident += state_bytes
    return resident, paged


def activation_bytes(shape: ModelShape, plan: Plan, batch: Batch) -> int:
    """What the peak holds beside weights, optimizer and all gradients.

    The backward pass begins in the loss and then goes through the layers: what was kept for them shrinks and
    gradients grow, so the peak is in the loss, in the last layer or in the first.
    """
    layer = saved_by_layer(shape, plan, batch)
    in_layer = passing_in_layer(shape, plan, batch)
    kept = shape.layers * layer
    if plan.checkpointing:
        layer_input = batch.tokens * shape.hidden * plan.precision.residual
        kept = shape.layers * layer_input
        # Liger's norm keeps what checkpointing keeps anyway.
        in_layer += layer - (layer_input if plan.fast.liger else 0)
    if batch.has_mask:
        kept += batch.sequences * batch.length * batch.length
    in_loss = loss_bytes(shape, plan, batch)
    if plan.accumulates:
        return kept + max(in_loss, in_layer)
    gradients = shape.trained_weights * _FLOAT32
    return max(kept + in_loss - gradients, max(kept, gradients) + in_layer - gradients)


def trial_bytes(shape: ModelShape, plan: Plan) -> int:
    """At a job's start: the gradients of two plain passes, every B as it was, and what a plain pass keeps.

    With checkpointing that pass is the one over rows alone, which is made without.
    """
    plain = replace(plan, fast=FastWays())
    batch = _TRIAL_ALONE if plan.checkpointing else _TRIAL
    gradients = shape.trained_weights * _FLOAT32 * 5 // 2
    return gradients + shape.layers * saved_by_layer(shape, plain, batch)


def saved_by_layer(shape: ModelShape, plan: Plan, batch: Batch) -> int:
    """What autograd keeps of one decoder layer, in the order of its forward pass."""
    tokens, precision = batch.tokens, plan.precision
    # A norm computes in float32, and keeps that copy of its input; Liger's keeps the input.
    norms = tokens * shape.norm_width * (precision.residual if plan.fast.liger else _FLOAT32)
    # Under a mask grouped keys and values are repeated for every head.
    key_width = shape.query_width if batch.has_mask else shape.key_width
    attention = tokens * (2 * shape.query_width + 2 * key_width) * precision.products
    attention += tokens * shape.heads * _FLOAT32
    if batch.has_mask:
        aligned = -(-batch.length // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
        attention += batch.sequences * batch.length * aligned * precision.products
    # gate, activation(gate) and up; without a gate, the activation's input and output. Liger: gate and up.
    parts = 3 if shape.is_gated and not plan.fast.liger else 2
    mlp = tokens * shape.mlp_width * precision.residual * parts
    return norms + attention + mlp + _saved_by_adapters(shape, plan, tokens)


def _saved_by_adapters(shape: ModelShape, plan: Plan, tokens: int) -> int:
    """In one layer: inputs, what dropout left of them, the products with A, and 16-bit copies of A and B.

    The fast way keeps an input once and one byte for each number that dropout may drop.
    """
    products = plan.precision.products
    if plan.fast.linears:
        masks = shape.adapted_inputs if plan.lora.dropout else 0
        return tokens * ((shape.shared_inputs + shape.ranks) * products + masks) // shape.layers
    if plan.lora.dropout:
        inputs = shape.adapted_inputs * (products + (1 if plan.is_cuda else _FLOAT32))
    else:
        # PEFT's layer over an unquantized one casts its input to the adapter's type: a copy of its own.
        width = shape.shared_inputs if plan.quantization.load_in_4bit else shape.adapted_inputs
        inputs = width * products
    copies = shape.trained_weights * products if products < _FLOAT32 else 0
    return (tokens * (inputs + shape.ranks * products) + copies) // shape.layers


def loss_bytes(shape: ModelShape, plan: Plan, batch: Batch) -> int:
    """The last norm, the output layer and the loss at their worst; logits exist in tiles alone."""
    products = plan.precision.products
    norm = plan.precision.residual if plan.fast.liger else _FLOAT32
    hidden = batch.tokens * shape.hidden * norm + batch.scored * shape.hidden * products
    tile = min(batch.scored, _TILE_TOKENS) * _TILE_VOCABULARY * products
    gradient = batch.scored * shape.hidden * (_FLOAT32 + products)
    return hidden + tile * (1 if plan.is_cuda else _CPU_TILES) + gradient


def passing_in_layer(shape: ModelShape, plan: Plan, batch: Batch) -> int:
    """Gradients inside a layer at their worst, which is in the MLP, and one matrix unpacked from 4 bits."""
    precision = plan.precision
    unpacked = shape.largest_linear * precision.model if plan.quantization.load_in_4bit else 0
    if plan.fast.liger:
        # The gradients of gate and up lie where these did; dropout needs a copy of the MLP's product.
        copies = 1 if plan.fast.linears and not plan.lora.dropout else 2
        width = copies * shape.mlp_width + shape.hidden
        return batch.tokens * width * precision.residual + unpacked
    return batch.tokens * (2 * shape.mlp_width * precision.residual + shape.hidden * _FLOAT32) + unpacked
