"""Adapters on parameters of experts: tokens a second of the paged and of the general path, in process.

python -m benchmarks.serving_experts              a mixture like Qwen3-30B-A3B, of 8 layers
python -m benchmarks.serving_experts --tiny       a small one, for a CPU

The model has random weights. Prints JSON; `relative_error` is that of one layer's experts against PEFT's.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from benchmarks.serving_paths import (
    RANK,
    REQUESTS,
    make_model,
    measure_general,
    measure_paged,
    print_measured,
    save_adapter,
    speedup,
)
from worker.inference.model.runner import ModelRunner

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
    model = make_model(Qwen3MoeForCausalLM, make_config(_TINY if options.tiny else _LARGE, options.layers))
    print_measured(lambda folder: measure(model, folder, options))


def measure(model: PreTrainedModel, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of 16 requests at once: on the general path, then on the paged one."""
    save_adapter_on_experts(model, folder)
    x_NH = torch.randn(64, model.config.hidden_size, device=model.device, dtype=model.dtype)
    general_rates, general = measure_general(model, folder, options.general_tokens)
    expected_NH = run_experts(general._models[1], x_NH)
    general.close()
    del general
    paged_rates, runner = measure_paged(model, folder, options.tokens)
    found: dict[str, Any] = {**vars(options), **general_rates, **paged_rates}
    found["relative_error"] = _error(runner, model, x_NH, expected_NH)
    graphs = runner._decode_graphs
    found["decode steps are captured"] = graphs is not None and graphs.size(REQUESTS) is not None
    found["speedup"] = speedup(found)
    if model.device.type == "cuda":
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return found


def make_config(sizes: dict[str, int], layers: int) -> Qwen3MoeConfig:
    """A mixture of experts."""
    return Qwen3MoeConfig(
        **sizes,
        num_hidden_layers=layers,
        num_attention_heads=sizes["hidden_size"] // 64,
        num_key_value_heads=max(1, sizes["hidden_size"] // 512),
        head_dim=64,
        vocab_size=32000,
        max_position_embeddings=2048,
        norm_topk_prob=True,
    )


def save_adapter_on_experts(model: PreTrainedModel, folder: Path) -> None:
    """An adapter on all experts and the attention's queries."""
    config = model.config
    rows = config.num_experts * RANK
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    shapes = {
        "mlp.experts.base_layer": ((rows, hidden), (2 * inner, rows)),
        "mlp.experts": ((rows, inner), (hidden, rows)),
        "self_attn.q_proj": ((RANK, hidden), (config.num_attention_heads * config.head_dim, RANK)),
    }
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    save_adapter(model, folder, shapes, target_modules=["q_proj"], target_parameters=parameters)


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
