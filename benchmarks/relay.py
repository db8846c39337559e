"""The throughput of the API and the engine's HTTP: tokens per second from an engine without a model.

    python -m benchmarks.relay

Tokens per second of processor time say what one core could carry, however busy the machine is.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from app.core.engine.messages import BaseModelRef
from app.core.specs.job import QuantizationSpec
from benchmarks.relay_engine import STEPS_PER_SECOND
from benchmarks.serving_box import ServingBox, Setup
from benchmarks.streaming_clients import Load, send

BASE = BaseModelRef(name="none", quantization=QuantizationSpec(load_in_4bit=False))


def measure(clients: int, tokens: int, path: str) -> dict[str, Any]:
    """Measure one load."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        setup = Setup(BASE, folder / "models", folder / "artifacts", ["one"], "benchmarks.relay_engine")
        with ServingBox(setup, folder) as box:
            body = {"model": "one", "prompt": "Hi", "max_tokens": tokens}
            send(Load(box.port, [body | {"max_tokens": 4}] * clients, path))
            before = box.processor_seconds()
            answers = send(Load(box.port, [body] * clients, path))
            after = box.processor_seconds()
    made = sum(answer.tokens for answer in answers)
    seconds = max(answer.times[-1] for answer in answers) - min(answer.sent_at for answer in answers)
    return {
        "clients": clients,
        "offered_tokens_per_second": clients * STEPS_PER_SECOND,
        "tokens_per_second": round(made / seconds),
        "tokens_per_core_second": {name: round(made / (after[name] - before[name])) for name in after},
        "pieces": sum(len(answer.times) for answer in answers) / made,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    options = parser.parse_args()
    print(json.dumps(measure(options.clients, options.tokens, "/v1/completions"), indent=2))
