"""Adapters on parameters of experts, in one batch of the paged engine: the tokens that PEFT makes alone."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from app.core.engine.messages import Finished
from app.core.engine.sampling import Sampling
from tests.worker.inference.conftest import peft_warnings_ignored
from tests.worker.inference.fakes import Mailbox, make_base
from tests.worker.inference.general.conftest import (
    FAMILIES,
    generate_with_peft,
    make_model,
    save_adapter,
)
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.adapters.expert_lora import ExpertLora
from worker.inference.batching import executor
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.failures import AdapterUnsupported
from worker.inference.general.adapters import PeftFolder
from worker.inference.model.runner import ModelRunner
from worker.models.device import find_device

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
GATE_UP = BOTH[:1]
# Ranks, scales and layers of each kind; of different ranks, so that all slots grow while others are in use.
KINDS: dict[str, dict[str, object]] = {
    "both": {"r": 4, "target_parameters": BOTH, "target_modules": []},
    "gate and up, and attention": {"r": 2, "target_parameters": GATE_UP, "target_modules": ["q_proj"]},
    "down, rank-stabilized": {
        "r": 18,
        "use_rslora": True,
        "target_parameters": ["mlp.experts.down_proj"],
        "target_modules": ["o_proj"],
    },
    "patterns": {
        "r": 3,
        "target_parameters": BOTH,
        "target_modules": ["v_proj"],
        "rank_pattern": {"mlp.experts.gate_up_proj": 5, "v_proj": 7},
        "alpha_pattern": {"layers.1.mlp.experts.down_proj": 2, "mlp.experts.gate_up_proj": 9},
    },
    # PEFT turns these names into parameters, of twice the rank where two layers became one.
    "names of transformers 4": {"r": 4, "target_modules": ["gate_proj", "up_proj", "down_proj", "k_proj"]},
    # As PEFT's own targets of Qwen3-MoE.
    "router": {
        "r": 5,
        "target_parameters": ["gate.weight", "gate_up_proj", "down_proj"],
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "alpha_pattern": {"mlp.gate.weight": 3},
    },
    "attention alone": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
}
PROMPTS = [list(range(3, 40)), [9], [5, 6, 7, 8]]
OTHERS = {
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "shared_expert_intermediate_size": 16,
    },
}

# PEFT looks for the patterns that it writes itself for experts among modules; they name parameters.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")


@pytest.fixture(autouse=True)
def _peft_warnings():
    with peft_warnings_ignored():
        yield


@pytest.fixture
def model() -> PreTrainedModel:
    return make_model("Qwen3Moe")


def make_sequence(prompt_ids: list[int], adapter: CachedAdapter | None) -> Sequence:
    sampling = Sampling(temperature=0, max_new_tokens=10)
    return Sequence(Prompt(make_base(), adapter, prompt_ids, sampling, 0, (), lambda ids: " " * len(ids)))


def answer(runner: ModelRunner, slots: int, sequences: list[Sequence]) -> list[list[int]]:
    mail = Mailbox()
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=99, adapter_slot_count=slots))
    for sequence in sequences:
        engine.submit(sequence)
    while not all(map(mail.has_ended, sequences)):
        engine.step()
    assert {type(mail.end(sequence)) for sequence in sequences} == {Finished}
    return [sequence.token_ids for sequence in sequences]


@pytest.mark.parametrize("slots", [2, 8])
def test_mixed_batches_answer_as_peft_does_alone(slots: int, model: PreTrainedModel, tmp_path: Path) -> None:
    folders = {
        kind: save_adapter(model, tmp_path / str(index), seed=index, **options)
        for index, (kind, options) in enumerate(KINDS.items())
    }
    wanted = [(kind, prompt) for prompt in PROMPTS for kind in (None, *KINDS)]
    random.Random(slots).shuffle(wanted)
    expected = [
        generate_with_peft(model, folders[kind] if kind else None, prompt, 10) for kind, prompt in wanted
    ]
    adapters = {kind: read_adapter(kind, folder) for kind, folder in folders.items()}
    ready = {kind: one.ready_for(torch.float32, pinned=False) for kind, one in adapters.items()}
    runner = ModelRunner(model, find_device(), adapter_slot_count=slots, max_rows=6)

    found = answer(runner, slots, [make_sequence(prompt, ready.get(kind)) for kind, prompt in wanted])

    assert dict(enumerate(found)) == dict(enumerate(expected))
    assert len({tuple(tokens) for tokens in expected}) > len(wanted) // 2


@pytest.mark.parametrize(
    ("first", "second", "slot"),
    [("both", "patterns", 1), ("router", "attention alone", 2), ("attention alone", "both", 1)],
)
def test_an_adapter_that_runs_alone_changes_slots_where_both_have_memory_for_experts(
    first: str,
    second: str,
    slot: int,
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "_STEPS_BEFORE_SWAP", 4)
    adapters: list[CachedAdapter] = []
    expected = []
    for index, kind in enumerate((first, second)):
        folder = save_adapter(model, tmp_path / kind, seed=index, **KINDS[kind])
        adapters.append(read_adapter(kind, folder).ready_for(torch.float32, pinned=False))
        expected.append(generate_with_peft(model, folder, PROMPTS[0], 10))
    runner = ModelRunner(model, find_device(), adapter_slot_count=4, max_rows=6)
    sequences = [make_sequence(PROMPTS[0], adapters[index]) for index in (0, 1, 1, 0)]
    mail = Mailbox()
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=99, adapter_slot_count=4))
    for some in (sequences[:2], sequences[2:3], sequences[3:]):
        for sequence in some:
            engine.submit(sequence)
        while not all(map(mail.has_ended, some)):
            engine.step()

    assert [one.token_ids for one in sequences] == [expected[index] for index in (0, 1, 1, 0)]
    assert sequences[2].adapter_slot == slot


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_of_the_same_layout_answer_as_peft_does(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, family, OTHERS[family])
    model = make_model(family)
    folder = save_adapter(model, tmp_path / "a", target_parameters=BOTH, target_modules=["q_proj"])
    expected = [generate_with_peft(model, chosen, PROMPTS[0], 10) for chosen in (folder, None)]
    adapter = read_adapter("a", folder)
    assert isinstance(adapter, CachedAdapter)
    runner = ModelRunner(model, find_device(), adapter_slot_count=2, max_rows=4)

    found = answer(runner, 2, [make_sequence(PROMPTS[0], one) for one in (adapter, None)])

    assert found == expected
    assert found[0] != found[1]


def test_an_adapter_of_other_experts_is_refused_and_leaves_the_others(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "Qwen3Moe", {**FAMILIES["Qwen3Moe"], "num_experts": 3})
    folder = save_adapter(make_model("Qwen3Moe"), tmp_path, target_parameters=BOTH, target_modules=[])
    runner = ModelRunner(model, find_device(), adapter_slot_count=2, max_rows=4)

    with pytest.raises(AdapterUnsupported, match=r"of 3 experts with 32 .* has 4 with"):
        runner.load_adapter(1, read_adapter("a", folder))

    assert not any(isinstance(module.forward, ExpertLora) for module in model.modules())


def test_weights_that_no_nesting_explains_are_left_to_peft(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = save_adapter(model, tmp_path, target_parameters=BOTH, target_modules=[])
    weights = load_file(folder / "adapter_model.safetensors")
    lacking = {name: one for name, one in weights.items() if ".1.mlp.experts.lora_" not in name}
    assert len(lacking) == len(weights) - 2
    save_file(lacking, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    assert isinstance(read_adapter("a", folder), PeftFolder)


def test_a_step_without_adapters_takes_the_models_own_code(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_adapter(model, tmp_path, target_parameters=BOTH, target_modules=[])
    runner = ModelRunner(model, find_device(), adapter_slot_count=2, max_rows=4)
    runner.load_adapter(1, read_adapter("a", folder))
    monkeypatch.setattr(ExpertLora, "_linear", None)

    assert len(answer(runner, 2, [make_sequence(PROMPTS[0], None)])[0]) == 10
