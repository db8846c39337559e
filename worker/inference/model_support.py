"""Whether the engine can serve a base model: look at its configuration, then compute a few tokens both ways.

A model that would come out wrong is refused when it is loaded, with the reason.
Shape letters: T tokens, V vocabulary.
"""

import torch
from transformers import PreTrainedModel

from worker.inference import attention
from worker.inference.failures import ModelUnsupported
from worker.inference.kv_cache import KVCache

_LAYER_TYPES = {"full_attention", "sliding_attention"}
# With these, the angles of a whole batch follow its longest row once that is beyond the original context.
_BATCH_DEPENDENT_ROPES = {"dynamic", "longrope"}
_PROBE_LENGTH = 12
# How far apart, in the Euclidean norm, two ways to compute the same logits may come out.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}


def adopt(model: PreTrainedModel) -> int:
    """Put the slot attention into the model; answers the cache's bytes a token. Raises ModelUnsupported."""
    _refuse(model)
    ids_1T = (
        torch.arange(_PROBE_LENGTH, device=model.device)[None] % model.config.get_text_config().vocab_size
    )
    with torch.inference_mode():
        expected_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
        model.set_attn_implementation(attention.NAME)
        if model.config._attn_implementation != attention.NAME:
            raise ModelUnsupported(f"{_name(model)} does not let its attention be replaced.")
        cache, found_TV = _probe(model, ids_1T)
    error = float((found_TV - expected_TV).norm() / expected_TV.norm())
    # Written so that a NaN fails too.
    if not error <= _TOLERANCE[model.dtype]:
        raise ModelUnsupported(f"{_name(model)} comes out wrong in the engine (relative error {error:.2g}).")
    return cache.bytes_per_token


def context_length(model: PreTrainedModel) -> int:
    """Most tokens that one sequence may have."""
    config = model.config.get_text_config()
    lengths = [int(getattr(config, "max_position_embeddings", None) or 2048)]
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        if rope.get("rope_type") in _BATCH_DEPENDENT_ROPES:
            lengths.append(int(rope.get("original_max_position_embeddings") or lengths[0]))
    return min(lengths)


def _refuse(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or []) - _LAYER_TYPES
    if layer_types:
        raise ModelUnsupported(f"{_name(model)} has layers of type {', '.join(sorted(layer_types))}.")
    if config.is_encoder_decoder or getattr(config, "num_kv_shared_layers", None):
        raise ModelUnsupported(f"{_name(model)} has attention that is not plainly causal.")


def _probe(model: PreTrainedModel, ids_1T: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
    """Logits [T, V] of the slot path: two pieces of a prompt, then token by token."""
    cache = KVCache(max_tokens=_PROBE_LENGTH)
    cache.reserve(1, _PROBE_LENGTH)
    logits = []
    pieces = [(0, 5), (5, 9), *((start, start + 1) for start in range(9, _PROBE_LENGTH))]
    for start, end in pieces:
        positions_1T = torch.arange(start, end, device=ids_1T.device)[None]
        prefill_start = start if end - start > 1 else None
        step = attention.Step(cache, 0, positions_1T, end, prefill_start)
        output = model(input_ids=ids_1T[:, start:end], position_ids=positions_1T, use_cache=False, step=step)
        logits.append(output.logits[0].float())
        _check_windows(model, step)
    return cache, torch.cat(logits)


def _check_windows(model: PreTrainedModel, step: attention.Step) -> None:
    """A probe is shorter than any window, so a window that never reached the attention would go unseen."""
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
