"""Tokens a second of the general and of the paged path on one model with random weights, in process."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel

from app.core.engine.messages import BaseModelRef, Finished, Reply, ServingPath
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.runner import Runner
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.general.adapters import PeftFolder
from worker.inference.general.runner import GeneralRunner
from worker.inference.model.runner import ModelRunner
from worker.models.device import find_device

REQUESTS = 16
RANK = 16
_PROMPT_TOKENS = 128
_SLOTS = 8

Shape = tuple[int, int]


def print_measured(measure: Callable[[Path], dict[str, Any]]) -> None:
    """Print what `measure` finds with an empty folder, as JSON, below the device and torch's version."""
    scratch = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = {"device": find_device().name, "torch": torch.__version__, **measure(Path(folder))}
        print(json.dumps(found, indent=1))


def make_model(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights on the device."""
    device = find_device()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.is_cuda else torch.float32
    with torch.device(device.torch):
        return kind._from_config(config, dtype=dtype).eval()


def save_adapter(
    model: PreTrainedModel, folder: Path, shapes: Mapping[str, tuple[Shape, Shape]], **targets: list[str]
) -> None:
    """An adapter on modules of every layer, in PEFT's layout, with random weights.

    `shapes`: those of A and B, by the module's name within a layer. `targets`: PEFT's settings for them.
    """
    weights = {
        f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight": 0.02
        * torch.randn(shape, dtype=model.dtype)
        for layer in range(model.config.num_hidden_layers)
        for name, both in shapes.items()
        for side, shape in zip("AB", both, strict=True)
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, **targets}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def measure_general(
    model: PreTrainedModel, folder: Path, tokens: int
) -> tuple[dict[str, Any], GeneralRunner]:
    """The general path with one adapter; the caller closes the runner before the paged path is measured."""
    runner = GeneralRunner(model, find_device(), max_rows=REQUESTS, cache_share=0.1)
    rate = _run(runner, ServingPath.GENERAL, [PeftFolder("a", folder, "")], tokens)
    return {"general, one adapter": rate}, runner


def measure_paged(model: PreTrainedModel, folder: Path, tokens: int) -> tuple[dict[str, Any], ModelRunner]:
    """The paged path without an adapter, with one and with four; slot 1 holds the first."""
    device = find_device()
    runner = ModelRunner(model, device, adapter_slot_count=_SLOTS, max_rows=REQUESTS)
    runner.warm_up()
    adapter = read_adapter("a", folder)
    assert isinstance(adapter, CachedAdapter)
    adapter = adapter.ready_for(model.dtype, pinned=device.is_cuda)
    copies = [replace(adapter, id=str(index)) for index in range(4)]
    rates = {
        name: _run(runner, ServingPath.PAGED, adapters, tokens)
        for name, adapters in (
            ("paged, no adapter", [None]),
            ("paged, one adapter", [adapter]),
            ("paged, four adapters", copies),
        )
    }
    return rates, runner


def speedup(found: Mapping[str, Any]) -> float:
    """How many times as many tokens a second the paged path makes with one adapter."""
    return round(found["paged, one adapter"] / found["general, one adapter"], 1)


def _run(
    runner: Runner, path: ServingPath, adapters: list[CachedAdapter | PeftFolder | None], tokens: int
) -> float:
    """Tokens a second of all requests together, their prompts included; the second of two runs."""
    ended: list[Sequence] = []

    def deliver(replies: list[tuple[Sequence, Reply]]) -> None:
        for sequence, reply in replies:
            if reply.type != "delta":
                assert isinstance(reply, Finished), reply
                ended.append(sequence)

    engine = Engine(lambda _: runner, deliver, Scheduler(max_waiting=99, adapter_slot_count=_SLOTS))
    seconds = 0.0
    for new_tokens in (min(4, tokens), tokens):
        ended.clear()
        began = time.perf_counter()
        for index in range(REQUESTS):
            engine.submit(_make_sequence(index, path, adapters[index % len(adapters)], new_tokens))
        while len(ended) < REQUESTS:
            engine.step()
        seconds = time.perf_counter() - began
    return round(REQUESTS * tokens / seconds, 1)


def _make_sequence(
    index: int, path: ServingPath, adapter: CachedAdapter | PeftFolder | None, tokens: int
) -> Sequence:
    base = BaseModelRef(name="random", quantization=QuantizationSpec(load_in_4bit=False), path=path)
    ids = [3 + (index * 997 + position * 31) % 30000 for position in range(_PROMPT_TOKENS)]
    sampling = Sampling(temperature=0, max_new_tokens=tokens)
    return Sequence(Prompt(base, adapter, ids, sampling, 0, (), lambda made: " " * len(made)))
