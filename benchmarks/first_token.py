"""What comes before the first token besides the model: many clients at once, an engine without a model.

    python -m benchmarks.first_token --model data/models/SmolLM2-135M-Instruct --machine cpu-2-cores

Clients send one request each at the same moment, to eight adapters in turn, through the API's own process and
an engine process with its own preprocessing. `chat` is rendered with the model's chat template and tokenized;
`tokens` are token ids. The first round meets a cold engine: no tokenizer, no template, no adapter is loaded.
`last_at_ms` is when the last request of a round had passed each stage, measured in a round of its own. Writes
`benchmarks/results/first-token-<machine>.json`. `--earlier FILE` is the file of another run, such as one of
the version before a change: the ratios to it are written, too.

With `--timed-model` the engine is the worker's own, and its steps take as long as those of a 7B model on an
H200 (timed_engine.py); its stages are not measured.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from app.core.engine.messages import BaseModelRef
from app.core.specs.job import QuantizationSpec
from benchmarks import time_line
from benchmarks.estimate_settings import describe_machine
from benchmarks.serving_box import ServingBox, Setup
from benchmarks.serving_inputs import write_adapters
from benchmarks.streaming_clients import Load, send
from benchmarks.timings import percentile

_ENGINE, _TIMED_ENGINE = "benchmarks.preprocessing_engine", "benchmarks.timed_engine"
_RESULTS = Path(__file__).parent / "results"
_ADAPTERS = 8
_PROMPT_TOKENS = 128
_PROMPT_WORDS = 90  # about as many tokens, with the template's
_TEXT = "a conversation is rendered with its template and tokenized before it waits for the next step"
_NEW_TOKENS = 4
_PATHS = {"chat": "/v1/chat/completions", "tokens": "/v1/completions"}

Row = dict[str, Any]


def measure(source: Path, clients: list[int], rounds: int, engine_module: str) -> Iterator[Row]:
    """Measure every number of clients and kind of prompt, each with a cold engine first."""
    with tempfile.TemporaryDirectory() as scratch:
        models, artifacts = Path(scratch) / "models", Path(scratch) / "artifacts"
        folder = _make_model(source, models / source.name)
        names = [one.name for one in write_adapters(folder, artifacts, _ADAPTERS)]
        base = BaseModelRef(name=folder.name, quantization=QuantizationSpec(load_in_4bit=False))
        setup = Setup(base, models, artifacts, names, engine_module)
        for kind in _PATHS:
            for count in clients:
                bodies = [_bodies(folder, names, kind, count, seed) for seed in range(2 + rounds)]
                with _box(setup, Path(scratch) / f"{kind}-{count}") as box:
                    row = _measure_box(box, kind, bodies)
                if engine_module == _ENGINE:
                    line = Path(scratch) / f"{kind}-{count}-line"
                    row["last_at_ms"] = _time_line(setup, line, kind, bodies[0])
                yield row


def _make_model(source: Path, folder: Path) -> Path:
    """A model of a few weights with the tokenizer, the template and the vocabulary of another one."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith("index.json"):
            shutil.copy(path, folder)
    config = json.loads((source / "config.json").read_text())
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    tiny = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        **{name: config[name] for name in names if name in config},
    )
    LlamaForCausalLM(tiny).save_pretrained(folder)
    return folder


def _bodies(folder: Path, names: list[str], kind: str, count: int, seed: int) -> list[Row]:
    """One request of each client, no two with the same prompt, nor with one of another seed."""
    draw = random.Random(seed)
    common = {"max_tokens": _NEW_TOKENS, "temperature": 0}
    bodies: list[Row] = [{"model": names[index % len(names)], **common} for index in range(count)]
    if kind == "tokens":
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        for body in bodies:
            body["prompt"] = [draw.randrange(vocabulary) for _ in range(_PROMPT_TOKENS)]
        return bodies
    for body in bodies:
        text = " ".join(draw.choice(_TEXT.split()) for _ in range(_PROMPT_WORDS))
        body["messages"] = [{"role": "user", "content": text}]
    return bodies


@contextmanager
def _box(setup: Setup, folder: Path) -> Iterator[ServingBox]:
    folder.mkdir()
    with ServingBox(setup, folder) as box:
        yield box


def _measure_box(box: ServingBox, kind: str, rounds: list[list[Row]]) -> Row:
    """Measure rounds of requests. The first meets a cold engine, the second warms it up."""
    cold = _send(box, kind, rounds[0])
    _send(box, kind, rounds[1])
    before = box.processor_seconds()
    found = [_send(box, kind, bodies) for bodies in rounds[2:]]
    after = box.processor_seconds()
    requests = sum(map(len, found))
    return {
        "prompts": kind,
        "clients": len(rounds[0]),
        "cold_refused": len(rounds[0]) - len(cold),
        "refused": sum(map(len, rounds[2:])) - requests,
        "cold_first_token_p50_ms": round(statistics.median(cold), 1) if cold else None,
        "first_token_p50_ms": round(statistics.median(map(statistics.median, found)), 1),
        "first_token_p99_ms": round(statistics.median(percentile(one, 99) for one in found), 1),
        **{
            f"{name}_cpu_ms_per_request": round((after[name] - before[name]) / requests * 1e3, 2)
            for name in after
        },
    }


def _send(box: ServingBox, kind: str, bodies: list[Row]) -> list[float]:
    """Milliseconds to the first token of each answer; none for a request that was refused."""
    load = Load(box.port, bodies, _PATHS[kind], may_be_refused=True)
    return [answer.first_seconds * 1e3 for answer in send(load) if answer.times]


def _time_line(setup: Setup, folder: Path, kind: str, bodies: list[Row]) -> dict[str, float]:
    """Milliseconds after which the last request of a round has passed each stage."""
    marked = dataclasses.replace(
        setup, engine_module="benchmarks.time_line", api_command=("benchmarks.time_line", "api")
    )
    path = folder.with_suffix(".marks")
    os.environ[time_line.FILE_VARIABLE] = str(path)
    with _box(marked, folder) as box:
        load = Load(box.port, bodies, _PATHS[kind], may_be_refused=True)
        send(load)
        send(load)
        path.write_text("")
        answers = [answer for answer in send(load) if answer.times]
    began = min(answer.sent_at for answer in answers)
    stages = {stage: times[-1] for stage, times in time_line.read(path).items()}
    stages["received by the client"] = max(answer.times[0] for answer in answers)
    return {stage: round((at - began) * 1e3, 1) for stage, at in stages.items()}


def _ratios(rows: list[Row], earlier: list[Row]) -> dict[str, dict[str, float]]:
    """Every measured number relative to that of an earlier run."""
    before = {(row["prompts"], row["clients"]): row for row in earlier}
    return {
        f"{row['prompts']}, {row['clients']} clients": {
            name: round(value / other, 3)
            for name, value in row.items()
            if isinstance(value, float) and (other := before[row["prompts"], row["clients"]].get(name))
        }
        for row in rows
        if (row["prompts"], row["clients"]) in before
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="A folder whose tokenizer is used.")
    parser.add_argument("--machine", required=True, help="The result's file is named after it.")
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timed-model", action="store_true", help="Steps take as long as on an H200.")
    parser.add_argument("--earlier", type=Path, help="The file of a run to compare with.")
    options = parser.parse_args()
    found: Row = {**describe_machine("benchmarks.first_token"), "load_at_start": os.getloadavg()[0]}
    found["rows"] = []
    engine_module = _TIMED_ENGINE if options.timed_model else _ENGINE
    for row in measure(options.model, options.clients, options.rounds, engine_module):
        found["rows"].append(row)
        print(json.dumps(row), flush=True)
    found["load_at_end"] = os.getloadavg()[0]
    if options.earlier:
        found["earlier"] = json.loads(options.earlier.read_text())["rows"]
        found["ratios_to_earlier"] = _ratios(found["rows"], found["earlier"])
        print(json.dumps(found["ratios_to_earlier"], indent=1))
    path = _RESULTS / f"first-token-{options.machine}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
