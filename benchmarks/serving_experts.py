"""Adapters on parameters of experts: tokens a second of the paged and of the general path, in process.

python -m benchmarks.serving_experts              a mixture like Qwen3-30B-A3B, of 8 layers
python -m benchmarks.serving_experts --tiny       a small one, for a CPU

The model has random weights. Prints JSON; `relative_error` is that of one layer's experts against PEFT's.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from app.core.engine.messages import BaseModelRef, Finished, Reply, ServingPath
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.batching.executor import Runner
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Prompt, Sequence
from worker.inference.engine import Engine
from worker.inference.general.adapters import PeftFolder
from worker.inference.general.runner import GeneralRunner
from worker.inference.model.runner import ModelRunner
from worker.models.device import find_device

_REQUESTS = 16
_PROMPT_TOKENS = 128
_RANK = 16
_SLOTS = 8
_LARGE = {"hidden_size": 2048, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
_TINY = {"hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def main() -> None:
    """Measure both paths on one model, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--general-tokens", type=int, default=16, help="the same, on the general path")
    options = parser.parse_args()
    model = make_model(_TINY if options.tiny else _LARGE, options.layers)
    scratch = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        print(json.dumps(measure(model, Path(folder), options), indent=1))


def measure(model: PreTrainedModel, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of 16 requests at once: on the general path, then on the paged one."""
    device = find_device()
    save_adapter(model.config, folder, model.dtype)
    x_NH = torch.randn(64, model.config.hidden_size, device=model.device, dtype=model.dtype)
    general = GeneralRunner(model, device, max_rows=_REQUESTS, cache_share=0.1)
    found: dict[str, Any] = {"device": device.name, "torch": torch.__version__, **vars(options)}
    on_peft = PeftFolder("a", folder, "")
    found["general, one adapter"] = run(general, ServingPath.GENERAL, [on_peft], options.general_tokens)
    expected_NH = run_experts(general._models[1], x_NH)
    general.close()
    del general
    runner = ModelRunner(model, device, adapter_slot_count=_SLOTS, max_rows=_REQUESTS)
    runner.warm_up()
    adapter = read_adapter("a", folder)
    assert isinstance(adapter, CachedAdapter)
    adapter = adapter.ready_for(model.dtype, pinned=device.is_cuda)
    found["paged, no adapter"] = run(runner, ServingPath.PAGED, [None], options.tokens)
    found["paged, one adapter"] = run(runner, ServingPath.PAGED, [adapter], options.tokens)
    found["relative_error"] = _error(runner, model, x_NH, expected_NH)
    copies = [replace(adapter, id=str(index)) for index in range(4)]
    found["paged, four adapters"] = run(runner, ServingPath.PAGED, copies, options.tokens)
    graphs = runner._decode_graphs
    found["decode steps are captured"] = graphs is not None and graphs.size(_REQUESTS) is not None
    found["speedup"] = round(found["paged, one adapter"] / found["general, one adapter"], 1)
    if device.is_cuda:
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return found


def make_model(sizes: dict[str, int], layers: int) -> PreTrainedModel:
    """A mixture of experts with random weights on the device."""
    device = find_device()
    config = Qwen3MoeConfig(
        **sizes,
        num_hidden_layers=layers,
        num_attention_heads=sizes["hidden_size"] // 64,
        num_key_value_heads=max(1, sizes["hidden_size"] // 512),
        head_dim=64,
        vocab_size=32000,
        max_position_embeddings=2048,
        norm_topk_prob=True,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.is_cuda else torch.float32
    with torch.device(device.torch):
        return Qwen3MoeForCausalLM._from_config(config, dtype=dtype).eval()


def save_adapter(config: Qwen3MoeConfig, folder: Path, dtype: torch.dtype) -> None:
    """An adapter on all experts and the attention's queries, in PEFT's layout, with random weights."""
    rows = config.num_experts * _RANK
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    shapes = {
        "mlp.experts.base_layer": ((rows, hidden), (2 * inner, rows)),
        "mlp.experts": ((rows, inner), (hidden, rows)),
        "self_attn.q_proj": ((_RANK, hidden), (config.num_attention_heads * config.head_dim, _RANK)),
    }
    weights = {
        f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight": 0.02
        * torch.randn(shape, dtype=dtype)
        for layer in range(config.num_hidden_layers)
        for name, both in shapes.items()
        for side, shape in zip("AB", both, strict=True)
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": 32,
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def run(
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
        for index in range(_REQUESTS):
            engine.submit(_make_sequence(index, path, adapters[index % len(adapters)], new_tokens))
        while len(ended) < _REQUESTS:
            engine.step()
        seconds = time.perf_counter() - began
    return round(_REQUESTS * tokens / seconds, 1)


def _make_sequence(
    index: int, path: ServingPath, adapter: CachedAdapter | PeftFolder | None, tokens: int
) -> Sequence:
    base = BaseModelRef(name="random", quantization=QuantizationSpec(load_in_4bit=False), path=path)
    ids = [3 + (index * 997 + position * 31) % 30000 for position in range(_PROMPT_TOKENS)]
    sampling = Sampling(temperature=0, max_new_tokens=tokens)
    return Sequence(Prompt(base, adapter, ids, sampling, 0, (), lambda made: " " * len(made)))


@torch.inference_mode()
def run_experts(model: Any, x_NH: torch.Tensor) -> torch.Tensor:
    """The outputs of the first layer's experts, with experts chosen at random."""
    config = model.config
    random = torch.Generator().manual_seed(0)
    scores_NE = torch.rand(len(x_NH), config.num_experts, generator=random).to(x_NH.device)
    weights_NK, experts_NK = scores_NE.softmax(-1).topk(config.num_experts_per_tok)
    output_NH: torch.Tensor = model.model.layers[0].mlp.experts(x_NH, experts_NK, weights_NK.to(x_NH.dtype))
    return output_NH


def _error(
    runner: ModelRunner, model: PreTrainedModel, x_NH: torch.Tensor, expected_NH: torch.Tensor
) -> float:
    slots_N = torch.ones(len(x_NH), dtype=torch.long, device=x_NH.device)
    runner._slots.select({1}, slots_N)
    found_NH = run_experts(model, x_NH)
    return float((found_NH - expected_NH).float().norm() / expected_NH.float().norm())


if __name__ == "__main__":
    main()
