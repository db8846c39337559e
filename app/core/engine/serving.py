"""Which code of the engine serves a base model, and how fast: as far as configurations and engines tell.

Reads configurations as plain settings and knows no ML library; `worker/models/serving_path.py` has the same
for models in memory.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from app.core.engine.messages import ServingPath
from app.core.engine.state import EngineState
from app.core.engine.wire import Wire

_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Families whose attention can't be replaced by the paged engine's; a test compares this with the engine.
_ATTENTION = {
    **dict.fromkeys(("bloom", "falcon", "mpt"), "attention with ALiBi or of its own kind"),
    **dict.fromkeys(
        ("codegen", "gpt_neo", "gptj", "nemotron", "phimoe", "stablelm", "xglm"), "attention of its own kind"
    ),
}
# Families whose config.json may leave the types of the layers to the library.
_STATE_SPACE = {
    *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "mamba"),
    *("mamba2", "nemotron_h", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "recurrent_gemma"),
    *("zamba", "zamba2"),
}


class Serving(Wire):
    """Which code of the engine serves, and how fast."""

    path: ServingPath = Field(
        description="`paged`: many requests in one batch. `general`: transformers and PEFT, for what the "
        "first can't compute; requests take turns, a token each, so it is slower."
    )
    reason: str | None = Field(None, description="Why it is the general path.")
    tokens_per_second: float | None = Field(
        None, description="Of the last answers, each by itself; null: not measured since the engine started."
    )


def find_config_obstacle(config: Mapping[str, Any]) -> str | None:
    """What in a model of this configuration the paged engine can't compute, or None."""
    listed = config.get("layer_types")
    layer_types = set(map(str, listed)) - _LAYER_TYPES if isinstance(listed, list | tuple) else None
    if layer_types:
        return f"layers of type {', '.join(sorted(layer_types))}"
    if config.get("is_encoder_decoder") or config.get("num_kv_shared_layers"):
        return "attention that is not plainly causal"
    model_type = str(config.get("model_type"))
    if model_type in _STATE_SPACE:
        return "layers that are not attention alone"
    return _ATTENTION.get(model_type)


def find_serving(states: Iterable[EngineState], base_model: str, obstacle: str | None) -> Serving:
    """How a base model, or an adapter on it, is served.

    `obstacle`: why it needs the general path, where that is known without the engines.
    """
    records = [one for state in states for one in state.served if one.base_model == base_model]
    reason = obstacle or next((one.reason for one in records if one.reason), None)
    path = ServingPath.GENERAL if reason else ServingPath.PAGED
    speeds = [one.tokens_per_second for one in records if one.path is path and one.tokens_per_second]
    return Serving(path=path, reason=reason, tokens_per_second=speeds[0] if speeds else None)
