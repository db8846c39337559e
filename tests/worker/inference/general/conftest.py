"""Tiny models of many families, adapters of every kind for them, and an engine on the general path."""

import warnings
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from app.core.engine.messages import ServingPath
from app.core.engine.sampling import Sampling
from tests.worker.inference.conftest import peft_warnings_ignored
from tests.worker.inference.fakes import Mailbox, make_base
from tests.worker.inference.random_models import generate, make_random_model
from worker.inference.adapters.cache import StoredAdapter
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.general.model_copy import copy_modules
from worker.inference.general.runner import GeneralRunner
from worker.models.device import find_device

# Within the vocabulary.
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GATED_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
FAMILIES: dict[str, dict[str, object]] = {
    "Llama": {"attention_bias": True},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Falcon": {"alibi": True, "head_dim": None},
    "StableLm": {"partial_rotary_factor": 0.5},
    "Nemotron": {"partial_rotary_factor": 0.5},
    "Qwen3Next": {**_GATED_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3_5": _GATED_DELTA,
    "Mamba": {"state_size": 4},
    "Mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 2},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "FalconH1": {
        "mamba_d_ssm": 32,
        "mamba_d_head": 8,
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "GraniteMoeHybrid": {"num_local_experts": 4, "layer_types": ["mamba", "attention"], **_MAMBA},
    "Bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "Gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "Qwen3Moe": _EXPERTS,
}


def make_model(family: str) -> PreTrainedModel:
    return make_random_model(family, **{**_TOKENS, **FAMILIES[family]})


def save_adapter(model: PreTrainedModel, folder: Path, *, seed: int = 0, **options: object) -> Path:
    """An adapter whose trained weights, of whatever kind, are random, saved by PEFT itself."""
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 16, **options})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # That layers are transposed, and that embeddings are tied.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        adapted = get_peft_model(copy_modules(model, own=dict(model.named_parameters())), config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def generate_with_peft(
    model: PreTrainedModel, folder: Path | None, prompt_ids: Listed[int], count: int
) -> list[int]:
    """What PEFT's own `generate` makes, greedily, on a model of its own."""
    own = copy_modules(model, own=dict(model.named_parameters()))
    with peft_warnings_ignored():
        adapted = PeftModel.from_pretrained(own, folder).eval() if folder else own
    return generate(adapted, prompt_ids, count)


def make_sequence(
    prompt_ids: Listed[int], adapter: StoredAdapter | None = None, *, count: int = 10, **sampling: object
) -> Sequence:
    base = make_base().model_copy(update={"path": ServingPath.GENERAL})
    settings = Sampling(**{"temperature": 0, "max_new_tokens": count, **sampling})
    return Sequence(Prompt(base, adapter, prompt_ids, settings, 0, (), _decode))


def _decode(token_ids: Listed[int]) -> str:
    return "".join(chr(ord("0") + token_id) for token_id in token_ids)


@dataclass
class Bench:
    """An engine whose steps the test makes."""

    engine: Engine
    runner: GeneralRunner
    mail: Mailbox

    def run(self, *sequences: Sequence) -> None:
        """Submit sequences and step until all have ended."""
        for sequence in sequences:
            self.engine.submit(sequence)
        while not all(map(self.mail.has_ended, sequences)):
            self.engine.step()


def make_bench(model: PreTrainedModel, *, slots: int = 4, max_rows: int = 4) -> Bench:
    runner = GeneralRunner(model, find_device(), max_rows=max_rows, cache_share=0.1)
    mail = Mailbox()
    scheduler = Scheduler(max_waiting=99, adapter_slot_count=slots)
    return Bench(Engine(lambda _: runner, mail.deliver, scheduler), runner, mail)
