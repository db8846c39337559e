"""gpt-oss with an adapter on its attention: tokens a second of the paged and of the general path, in process.

    python -m benchmarks.serving_sinks [--layers 8]

The model has random weights in the widths of gpt-oss-20b; 16 requests at once. Needs a GPU. Prints JSON.
"""

import argparse
from pathlib import Path
from typing import Any

from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedModel

from benchmarks.serving_paths import (
    RANK,
    make_model,
    measure_general,
    measure_paged,
    print_measured,
    save_adapter,
    speedup,
)


def main() -> None:
    """Measure both paths on one model, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    config = GptOssConfig(num_hidden_layers=parser.parse_args().layers, vocab_size=32000)
    model = make_model(GptOssForCausalLM, config)
    print_measured(lambda folder: measure(model, folder))


def measure(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Tokens a second: on the general path (16 a request), then on the paged one (64)."""
    save_adapter_on_attention(model, folder)
    found, general = measure_general(model, folder, 16)
    general.close()
    del general
    found |= measure_paged(model, folder, 64)[0]
    return {**found, "speedup": speedup(found)}


def save_adapter_on_attention(model: PreTrainedModel, folder: Path) -> None:
    """An adapter on the attention's projections."""
    config = model.config
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    widths = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
    }
    shapes = {
        f"self_attn.{name}": ((RANK, inputs), (outputs, RANK)) for name, (inputs, outputs) in widths.items()
    }
    save_adapter(model, folder, shapes, target_modules=sorted(widths))


if __name__ == "__main__":
    main()
