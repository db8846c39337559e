"""Models for the fake Hub: small files under the names of a real repository."""

import json
from typing import Any

from tests.servers.hub import FakeHub

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WEIGHT_BYTES = 300_000


def add_model(hub: FakeHub, name: str, *, config: dict[str, Any] | None = None, **options: Any) -> None:
    """Add a model that a search finds: 7 billion parameters in 16 bits, says its page."""
    files = {
        "config.json": json.dumps({**CONFIG, **(config or {})}).encode(),
        "model.safetensors": bytes(WEIGHT_BYTES),
        "pytorch_model.bin": b"a pickle",
        "README.md": b"# A model",
    }
    about = {
        "tags": ["safetensors", "transformers", "license:apache-2.0"],
        "pipeline_tag": "text-generation",
        "safetensors": {"parameters": {"BF16": 7_000_000_000}, "total": 7_000_000_000},
        "downloads": 1000,
        **options.pop("about", {}),
    }
    hub.add(name, files, about=about, **options)
