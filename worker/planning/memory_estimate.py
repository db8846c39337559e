"""Estimates a job's peak memory in bytes from its shapes, settings and largest batch, by arithmetic alone.

It follows what the training process does: the loss in chunks of tokens, PyTorch's attention, float32
adapters under autocast, and the planned optimizations. Memory that only makes training faster and is released
when memory runs short is not counted: CUDA graphs, dequantized weights. benchmarks/estimate.py compares it
with measured peaks. Knows no model and no device.

T: tokens of a batch, padding counted. L: tokens of its longest sequence. H: the hidden size. V: vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.core.specs.job import LoraSpec, Optimizer, QuantizationSpec

_FLOAT32 = 4
_MASK_ALIGNMENT = 16
# As many logits exist at once as of so many tokens with a vocabulary of this size (worker/training/loss.py).
_TILE_TOKENS = 4096
_TILE_VOCABULARY = 32768
# Copies of a tile that exist at once where the softmax is computed without Triton.
_CPU_TILES = 5
# bitsandbytes: one scale for each block of weights; with double quantization, one byte and a second scale.
_SCALE_BLOCK = 64
_SECOND_SCALE_BLOCK = 256
# Tensors below these sizes have an optimizer state that bitsandbytes neither pages nor quantizes.
_PAGED_FROM = 100_000
_EIGHT_BITS_FROM = 4096
_STATE_BLOCK = 256
# Measured on an H100 (benchmarks/results/estimate-h100.json): the CUDA context, and cuBLAS's workspace.
CUDA_CONTEXT = 640 << 20
_CUDA_WORKSPACE = 64 << 20
_CPU_PROCESS = 900 << 20
# Layers whose weights are whole at a time where devices divide them: the one that computes, the next one, and
# the buffer from which its weights are copied.
_COLLECTED_LAYERS = 3


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a base model with an adapter on it. Widths are of one layer, weights are of all layers."""

    layers: int
    hidden: int
    vocabulary: int  # rows of the output layer
    heads: int
    query_width: int
    key_width: int
    mlp_width: int
    is_gated: bool
    norm_width: int  # of all norms of a layer together
    quantized_weights: int  # held in 4 bits by QLoRA
    other_weights: int
    largest_linear: int  # weights of the largest linear layer inside the layers
    trained_sizes: tuple[int, ...]  # weights of each tensor that is trained
    adapted_inputs: int  # of all adapted linear layers together, for one token
    shared_inputs: int  # the same, counting an input that several of them share once
    ranks: int  # of all adapted linear layers together
    layer_weights: int = 0  # of all layers of the decoder together, the adapter left out

    @property
    def trained_weights(self) -> int:
        """Count of all trained weights."""
        return sum(self.trained_sizes)


@dataclass(frozen=True)
class Precision:
    """Bytes of a number in three places."""

    model: int  # weights that are not quantized
    products: int  # inputs and results of the adapters' and attention's matrix products
    residual: int  # the hidden state between layers


@dataclass(frozen=True)
class BatchShape:
    """The largest batch of a job. `scored`: tokens that the loss counts. `has_mask`: of attention."""

    sequences: int
    length: int
    scored: int
    has_mask: bool
    padding_free_tokens: int | None = None  # of rows concatenated without padding and mask

    @property
    def tokens(self) -> int:
        """T, padding counted."""
        return self.sequences * self.length if self.padding_free_tokens is None else self.padding_free_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes at a job's peak. `paged` is not in the total: it moves off the device when memory runs short."""

    weights: int
    lora: int
    optimizer: int
    activations: int
    overhead: int
    paged: int

    @property
    def total(self) -> int:
        """Bytes that must fit into the device."""
        return self.weights + self.lora + self.optimizer + self.activations + self.overhead


# The batches of worker/training/optimizations/trial.py: rows padded, and rows alone.
_TRIAL = BatchShape(sequences=3, length=48, scored=85, has_mask=True)
_TRIAL_PADDING_FREE = BatchShape(
    sequences=3, length=48, scored=85, has_mask=False, padding_free_tokens=48 + 24 + 16
)


@dataclass(frozen=True)
class MemorySettings:
    """The settings of a job that its memory depends on."""

    precision: Precision
    quantization: QuantizationSpec
    lora: LoraSpec
    optimizer: Optimizer
    checkpointing: bool
    accumulates: bool  # several batches in an optimizer step
    is_cuda: bool
    fused_lora: bool = False  # LoRA in one autograd function
    explicit_decoder: bool = False  # norms and gated MLPs without copies between their parts
    parts: int = 1  # into which the devices of a job divide the weights of the layers

    @property
    def has_trial(self) -> bool:
        """Whether the job begins with a trial of optimizations."""
        return self.fused_lora or self.explicit_decoder


def estimate(shape: ModelShape, settings: MemorySettings, batch: BatchShape) -> Memory:
    """The peak, which is in the backward pass or in the trial of optimizations, before the optimizer exists.

    `lora` counts the adapter's gradients.
    """
    optimizer, paged = optimizer_bytes(shape.trained_sizes, settings.optimizer, is_cuda=settings.is_cuda)
    activations = activation_bytes(shape, settings, batch)
    if settings.has_trial:
        activations = max(activations, trial_bytes(shape, settings) - optimizer)
    return Memory(
        weights=weight_bytes(shape, settings.quantization, settings.precision, settings.parts),
        lora=shape.trained_weights
        * (_FLOAT32 * 2 + (settings.precision.products if settings.fused_lora else 0)),
        optimizer=optimizer,
        activations=activations,
        overhead=CUDA_CONTEXT + _CUDA_WORKSPACE if settings.is_cuda else _CPU_PROCESS,
        paged=paged,
    )


def weight_bytes(
    shape: ModelShape, quantization: QuantizationSpec, precision: Precision, parts: int = 1
) -> int:
    """Bytes of the frozen base model: 4-bit weights with their scales, the rest in 16 bits (32 on a CPU).

    Of `parts` devices that divide the layers: a part of each, and the layers that are collected at a time.
    """
    if not quantization.load_in_4bit:
        whole = (shape.quantized_weights + shape.other_weights) * precision.model
        in_layers = shape.layer_weights * precision.model
        collected = min(_COLLECTED_LAYERS, shape.layers) * in_layers // max(1, shape.layers)
        return whole if parts == 1 else whole - in_layers + in_layers // parts + collected
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
        # One row and one column for each matrix: close to nothing.
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


def activation_bytes(shape: ModelShape, settings: MemorySettings, batch: BatchShape) -> int:
    """Bytes at the peak besides weights, optimizer state and all gradients.

    The backward pass goes from the loss through the layers: saved activations shrink and gradients grow, so
    the peak is in the loss, in the last layer or in the first.
    """
    layer = saved_by_layer(shape, settings, batch)
    in_layer = passing_in_layer(shape, settings, batch)
    saved = shape.layers * layer
    if settings.checkpointing:
        layer_input = batch.tokens * shape.hidden * settings.precision.residual
        saved = shape.layers * layer_input
        # The explicit decoder's first norm saves its input, which checkpointing saves anyway.
        in_layer += layer - (layer_input if settings.explicit_decoder else 0)
    if batch.has_mask:
        saved += batch.sequences * batch.length * batch.length
    in_loss = loss_bytes(shape, settings, batch)
    if settings.accumulates:
        return saved + max(in_loss, in_layer)
    gradients = shape.trained_weights * _FLOAT32
    return max(saved + in_loss - gradients, max(saved, gradients) + in_layer - gradients)


def trial_bytes(shape: ModelShape, settings: MemorySettings) -> int:
    """Bytes of the trial at a job's start: the gradients of two unoptimized passes, a copy of every B, and
    the activations of an unoptimized pass.

    With checkpointing that is the pass over each row alone, which is not checkpointed.
    """
    plain = replace(settings, fused_lora=False, explicit_decoder=False)
    batch = _TRIAL_PADDING_FREE if settings.checkpointing else _TRIAL
    gradients = shape.trained_weights * _FLOAT32 * 5 // 2
    return gradients + shape.layers * saved_by_layer(shape, plain, batch)


def saved_by_layer(shape: ModelShape, settings: MemorySettings, batch: BatchShape) -> int:
    """Bytes that autograd saves in one decoder layer, in the order of its forward pass."""
    tokens, precision = batch.tokens, settings.precision
    # A norm computes in float32 and saves that copy of its input; the explicit decoder's saves the input.
    norms = tokens * shape.norm_width * (precision.residual if settings.explicit_decoder else _FLOAT32)
    # With a mask, grouped keys and values are repeated for every head.
    key_width = shape.query_width if batch.has_mask else shape.key_width
    attention = tokens * (2 * shape.query_width + 2 * key_width) * precision.products
    attention += tokens * shape.heads * _FLOAT32
    if batch.has_mask:
        aligned = -(-batch.length // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
        attention += batch.sequences * batch.length * aligned * precision.products
    # gate, activation(gate) and up; without a gate, the activation's input and output. The explicit decoder:
    # gate and up.
    parts = 3 if shape.is_gated and not settings.explicit_decoder else 2
    mlp = tokens * shape.mlp_width * precision.residual * parts
    return norms + attention + mlp + _saved_by_adapters(shape, settings, tokens)


def _saved_by_adapters(shape: ModelShape, settings: MemorySettings, tokens: int) -> int:
    """Bytes in one layer: inputs, inputs after dropout, the products with A, and 16-bit copies of A and B.

    LoRA in one function saves an input once, and one byte for each number that dropout may drop.
    """
    products = settings.precision.products
    if settings.fused_lora:
        masks = shape.adapted_inputs if settings.lora.dropout else 0
        return tokens * ((shape.shared_inputs + shape.ranks) * products + masks) // shape.layers
    if settings.lora.dropout:
        inputs = shape.adapted_inputs * (products + (1 if settings.is_cuda else _FLOAT32))
    else:
        # PEFT's layer over an unquantized one casts its input to the adapter's type: a copy of its own.
        width = shape.shared_inputs if settings.quantization.load_in_4bit else shape.adapted_inputs
        inputs = width * products
    copies = shape.trained_weights * products if products < _FLOAT32 else 0
    return (tokens * (inputs + shape.ranks * products) + copies) // shape.layers


def loss_bytes(shape: ModelShape, settings: MemorySettings, batch: BatchShape) -> int:
    """Bytes at the peak of the last norm, the output layer and the loss; logits exist only in tiles."""
    products = settings.precision.products
    norm = settings.precision.residual if settings.explicit_decoder else _FLOAT32
    hidden = batch.tokens * shape.hidden * norm + batch.scored * shape.hidden * products
    tile = min(batch.scored, _TILE_TOKENS) * _TILE_VOCABULARY * products
    gradient = batch.scored * shape.hidden * (_FLOAT32 + products)
    return hidden + tile * (1 if settings.is_cuda else _CPU_TILES) + gradient


def passing_in_layer(shape: ModelShape, settings: MemorySettings, batch: BatchShape) -> int:
    """Bytes of gradients at the peak inside a layer, which is in the MLP, and of one dequantized weight."""
    precision = settings.precision
    dequantized = shape.largest_linear * precision.model if settings.quantization.load_in_4bit else 0
    if settings.explicit_decoder:
        # The gradients of gate and up overwrite these; dropout needs a copy of the MLP's product.
        copies = 1 if settings.fused_lora and not settings.lora.dropout else 2
        width = copies * shape.mlp_width + shape.hidden
        return batch.tokens * width * precision.residual + dequantized
    return batch.tokens * (2 * shape.mlp_width * precision.residual + shape.hidden * _FLOAT32) + dequantized
