"""Whatever else is running, an answer of the general path has the tokens that PEFT generates alone."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.core.engine.messages import Finished, ServingPath
from tests.worker.inference.conftest import peft_warnings_ignored
from tests.worker.inference.general.conftest import (
    FAMILIES,
    generate_with_peft,
    make_bench,
    make_model,
    make_sequence,
    save_adapter,
)
from worker.inference.adapters.cache import read_adapter
from worker.inference.general.adapters import PeftFolder

PROMPTS = [list(range(3, 40)), [9]]
# On a Llama with biases.
KINDS: dict[str, dict[str, object]] = {
    "dora": {"use_dora": True},
    "dora, rank-stabilized, all layers": {
        "use_dora": True,
        "use_rslora": True,
        "target_modules": "all-linear",
    },
    "output layer trained whole": {"modules_to_save": ["lm_head"]},
    "embedding, output layer and norm": {"modules_to_save": ["embed_tokens", "lm_head", "model.norm"]},
    "on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "on the embedding, dora": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "on the output layer, dora": {"target_modules": ["lm_head", "q_proj"], "use_dora": True},
    "all biases": {"bias": "all"},
    "its own biases": {"bias": "lora_only"},
    "biases of B": {"lora_bias": True},
    "some tokens": {"trainable_token_indices": [5, 6, 7, 9]},
    "patterns": {
        "use_dora": True,
        "target_modules": ["q_proj", "up_proj", "o_proj"],
        "rank_pattern": {"up_proj": 9},
        "alpha_pattern": {"layers.1.self_attn.o_proj": 2},
    },
    "layers by pattern": {"use_dora": True, "target_modules": r".*\.(q|down)_proj"},
}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
OTHER_EXPERTS = {"target_parameters": ["mlp.experts.down_proj"], "target_modules": ["q_proj"]}


# PEFT looks for the patterns that it writes itself for experts among modules; they name parameters.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")


@pytest.fixture(autouse=True)
def _peft_warnings():
    with peft_warnings_ignored():
        yield


def test_every_kind_of_adapter_at_once_answers_as_peft_does_alone(tmp_path: Path) -> None:
    model = make_model("Llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    folders = {
        kind: save_adapter(model, tmp_path / str(index), seed=index, **options)
        for index, (kind, options) in enumerate(KINDS.items())
    }
    adapters = {kind: read_adapter(kind, folder) for kind, folder in folders.items()}
    assert {type(adapter) for adapter in adapters.values()} == {PeftFolder}
    bench = make_bench(model)
    wanted = [(kind, prompt) for prompt in PROMPTS for kind in [None, *KINDS]]
    random.Random(0).shuffle(wanted)
    sequences = [make_sequence(prompt, adapters[kind] if kind else None) for kind, prompt in wanted]

    bench.run(*sequences)

    expected = [
        generate_with_peft(model, folders[kind] if kind else None, prompt, 10) for kind, prompt in wanted
    ]
    answers = [sequence.token_ids for sequence in sequences]
    assert dict(enumerate(answers)) == dict(enumerate(expected))
    assert len({tuple(answer) for answer in answers}) > len(wanted) // 2
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_transformers_and_peft_do(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    # PEFT refuses the output projections of Mamba's layers, which read the weights past the module.
    excluded = {"exclude_modules": ["out_proj"]} if family in ("Mamba", "Mamba2", "FalconH1") else {}
    folder = save_adapter(model, tmp_path / "adapter", target_modules="all-linear", **excluded)
    adapter = PeftFolder("a", folder, "")
    bench = make_bench(model)
    wanted = [(prompt, chosen) for prompt in PROMPTS for chosen in (None, folder)]
    sequences = [make_sequence(prompt, adapter if chosen else None) for prompt, chosen in wanted]

    bench.run(*sequences)

    assert [sequence.token_ids for sequence in sequences] == [
        generate_with_peft(model, chosen, prompt, 10) for prompt, chosen in wanted
    ]
    end = bench.mail.end(sequences[0])
    assert isinstance(end, Finished)
    assert end.timings.path is ServingPath.GENERAL


def test_adapters_of_different_expert_parameters_answer_side_by_side(tmp_path: Path) -> None:
    model = make_model("Qwen3Moe")
    folders = [
        save_adapter(model, tmp_path / "all", target_modules=[], **EXPERTS),
        save_adapter(model, tmp_path / "down", **OTHER_EXPERTS),
    ]
    adapters = [PeftFolder(folder.name, folder, "") for folder in folders]
    bench = make_bench(model)
    sequences = [make_sequence(PROMPTS[0], adapter) for adapter in (None, *adapters)]

    bench.run(*sequences)

    answers = [sequence.token_ids for sequence in sequences]
    assert answers == [generate_with_peft(model, folder, PROMPTS[0], 10) for folder in (None, *folders)]
    assert len({tuple(answer) for answer in answers}) == 3


def test_an_adapter_that_brings_base_weights_of_its_own_keeps_them_to_itself(tmp_path: Path) -> None:
    """PEFT saves the embedding itself beside an adapter on it, unless it is told not to."""
    model = make_model("Llama")
    folder = save_adapter(model, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    weights = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    weights[name] = model.get_input_embeddings().weight.detach().flip(0).contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    bench = make_bench(model)
    sequences = [make_sequence(PROMPTS[0], adapter) for adapter in (read_adapter("a", folder), None)]

    bench.run(*sequences)

    assert [sequence.token_ids for sequence in sequences] == [
        generate_with_peft(model, chosen, PROMPTS[0], 10) for chosen in (folder, None)
    ]
    del weights[name]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert generate_with_peft(model, folder, PROMPTS[0], 10) != sequences[0].token_ids
