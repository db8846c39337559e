"""Prepares a base model for the engine, and checks that its logits stay the same.

A few tokens are computed by the model as it was and by the engine's path. A model whose logits differ is
refused when it is loaded, with the reason.
Shape letters: N tokens, V vocabulary.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from worker.decoder.reading import Unsupported
from worker.inference.failures import ModelUnsupported
from worker.inference.model import attention
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.linears import MergedLinears, compile_products
from worker.inference.model.paths import DecoderPath, ModelPath, TransformersPath
from worker.models.serving_path import find_model_obstacle

# Rotary embeddings whose angles depend on the longest row of the batch beyond the original context.
_BATCH_DEPENDENT_ROPES = {"dynamic", "longrope"}
_PROBE_LENGTH = 12
# Numbers of tokens that the products' kernels are compiled for: those of the probe, and more.
_PROBED_SIZES = [1, 8]
_PRODUCT_SIZES = [16, 32, 64]
# Largest relative error (Euclidean norm) between two computations of the same logits.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedModel:
    """A model that computes by the engine's attention and linear layers."""

    path: ModelPath
    # Bytes of keys and values per token.
    bytes_per_token: int
    uses_kernels: bool


@torch.inference_mode()
def prepare_model(model: PreTrainedModel) -> PreparedModel:
    """Find the path that computes a model, which is changed in place. Raises ModelUnsupported."""
    _check_config(model)
    vocabulary_size = model.config.get_text_config().vocab_size
    ids_N = torch.arange(_PROBE_LENGTH, device=model.device) % vocabulary_size
    expected_NV = model(input_ids=ids_N[None], use_cache=False).logits[0].float()
    try:
        return _prepare(DecoderPath(model), model, ids_N, expected_NV)
    except (Unsupported, ModelUnsupported) as reason:
        _log.info("The model's own layers are used: %s", reason)
    return _prepare(TransformersPath(model), model, ids_N, expected_NV)


def _prepare(
    path: ModelPath,
    model: PreTrainedModel,
    ids_N: torch.Tensor,
    expected_NV: torch.Tensor,
) -> PreparedModel:
    can_use_kernels = model.device.type == "cuda" and not _has_sinks(model)
    uses_kernels = can_use_kernels and _use_kernels(path, model, ids_N, expected_NV)
    try:
        cache, found_NV = _probe(path, model, ids_N, uses_kernels)
    # The model's own code may raise anything at attention of another shape; the general path computes it.
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as fault:
        _log.warning("The paged engine can't compute this model", exc_info=True)
        raise ModelUnsupported(f"{_name(model)} can't be computed by the paged engine: {fault}") from fault
    error = _error(found_NV, expected_NV)
    # In this form, so that NaN fails too.
    if not error <= TOLERANCE[model.dtype]:
        raise ModelUnsupported(f"{_name(model)} comes out wrong in the engine (relative error {error:.2g}).")
    return PreparedModel(path, cache.bytes_per_token, uses_kernels)


def _use_kernels(
    path: ModelPath,
    model: PreTrainedModel,
    ids_N: torch.Tensor,
    expected_NV: torch.Tensor,
) -> bool:
    """Compute by kernels. Returns whether they compile and give the same logits; else they are not used."""
    with ExitStack() as undo:
        try:
            undo.enter_context(path.use_kernels())
            for group in path.groups:
                undo.callback(group.weights.use_kernels, False)
                group.weights.use_kernels()
            if model.device.type == "cuda":  # Triton's interpreter runs in one thread
                compile_products(path.groups, [*_PROBED_SIZES, *_PRODUCT_SIZES])
            errors = [_error(_probe(path, model, ids_N, uses_kernels=True)[1], expected_NV)]
            errors += _errors_of_products(path.groups, model.dtype)
        except ModelUnsupported:
            raise
        # Triton raises many kinds of errors where there is no compiler or a shape is unsupported.
        except Exception as failure:
            _log.warning("The kernels can't be used, so generation is slower: %s", failure, exc_info=True)
            return False
        # In this form, so that NaN fails too.
        wrong = [error for error in errors if not error <= TOLERANCE[model.dtype]]
        if wrong:
            _log.warning(
                "The kernels are wrong for this model (error %.2g), so generation is slower", wrong[0]
            )
            return False
        undo.pop_all()
    return True


def _errors_of_products(groups: list[MergedLinears], dtype: torch.dtype) -> list[float]:
    """Of products by kernels of more tokens than the probe has, one for each shape of weights and number."""
    errors = []
    for group in {(sum(group.widths), group.input_width): group for group in groups}.values():
        random = torch.Generator(group.device).manual_seed(0)
        x_NI = torch.randn(
            _PRODUCT_SIZES[-1], group.input_width, dtype=dtype, device=group.device, generator=random
        )
        group.weights.use_kernels(False)
        expected_NO = group.weights.product(x_NI).float()
        group.weights.use_kernels()
        for count in _PRODUCT_SIZES:
            errors.append(_error(group.weights.product(x_NI[:count]).float(), expected_NO[:count]))
    return errors


def _has_sinks(model: PreTrainedModel) -> bool:
    """Whether the attention has sinks, which the kernels do not have."""
    return any(name.endswith(".sinks") for name, _parameter in model.named_parameters())


def _error(found_NV: torch.Tensor, expected_NV: torch.Tensor) -> float:
    # A model may have layers that give zeros, such as those added to deepen it before they are trained.
    smallest = torch.finfo(torch.float32).tiny
    return float((found_NV - expected_NV).norm() / expected_NV.norm().clamp(min=smallest))


def context_length(model: PreTrainedModel) -> int:
    """The maximum number of tokens of one sequence."""
    config = model.config.get_text_config()
    lengths = [int(getattr(config, "max_position_embeddings", None) or 2048)]
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        if rope.get("rope_type") in _BATCH_DEPENDENT_ROPES:
            lengths.append(int(rope.get("original_max_position_embeddings") or lengths[0]))
    return min(lengths)


def _check_config(model: PreTrainedModel) -> None:
    obstacle = find_model_obstacle(model.config)
    if obstacle:
        raise ModelUnsupported(f"{_name(model)} has {obstacle}.")


def _probe(
    path: ModelPath, model: PreTrainedModel, ids_N: torch.Tensor, uses_kernels: bool
) -> tuple[KVCache, torch.Tensor]:
    """The cache, and logits [N, V] of a path: two chunks of a prompt, then token by token."""
    cache = KVCache(block_count=2)
    block_tables_11 = torch.ones(1, 1, dtype=torch.int32, device=ids_N.device)
    logits = []
    for start, end in [(0, 5), (5, 9), *((start, start + 1) for start in range(9, _PROBE_LENGTH))]:
        positions = torch.arange(start, end, device=ids_N.device)
        chunks = [attention.Chunk(0, start, end - start)] if end - start > 1 else []
        step = attention.Step(cache, block_tables_11, torch.zeros_like(positions), positions, chunks, end)
        if uses_kernels:
            step.use_kernels()
        logits.append(path(ids_N[start:end], step, has_logits=True).float())
        _check_windows(model, step)
    return cache, torch.cat(logits)


def _check_windows(model: PreTrainedModel, step: attention.Step) -> None:
    """Raise ModelUnsupported where a layer's sliding window did not reach the attention function.

    The logits do not show this: the probe is shorter than any window.
    """
    layer_types = getattr(model.config.get_text_config(), "layer_types", None) or []
    missing = [
        index
        for index, window in step.windows.items()
        if index < len(layer_types) and layer_types[index] == "sliding_attention" and window is None
    ]
    if missing or not step.windows:
        raise ModelUnsupported(f"{_name(model)} keeps its sliding window or its attention to itself.")


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__
