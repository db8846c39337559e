"""Models of other families give the right tokens or are refused."""

import pytest
import torch
import transformers

from app.core.engine.sampling import Sampling
from tests.worker.inference.fakes import Mailbox, make_base
from tests.worker.inference.random_models import generate, make_random_model
from worker.decoder import reading
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.failures import ModelUnsupported
from worker.inference.model import paths, support
from worker.inference.model.paths import DecoderPath, TransformersPath
from worker.inference.model.runner import ModelRunner
from worker.models import serving_path
from worker.models.device import find_device

MODELS = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "Qwen3": {},
    "Gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "Gemma3": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "Phi3": {"pad_token_id": 0},
    "Olmo2": {},
    "Mixtral": {"num_local_experts": 4, "sliding_window": 8},
    "Starcoder2": {"sliding_window": 8},
    "GptOss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_families_like_llama_are_computed_by_the_decoder_and_others_by_their_own_code(kind):
    path = support.prepare_model(make_random_model(kind, **MODELS[kind])).path

    is_like_llama = kind in {"Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3", "Phi3"}
    assert isinstance(path, DecoderPath if is_like_llama else TransformersPath)


def test_a_model_whose_decoder_comes_out_wrong_is_computed_by_its_own_code(monkeypatch):
    monkeypatch.setattr(
        paths, "read_angles", lambda *given: {None: [one.flip(0) for one in read(*given)[None]]}
    )
    read = reading.read_angles

    assert isinstance(support.prepare_model(make_random_model("Llama")).path, TransformersPath)


@pytest.mark.parametrize("kind", MODELS)
def test_model_answers_as_transformers_does(kind):
    model = make_random_model(kind, **MODELS[kind])
    prompts = [[5, 6, 7], list(range(3, 40))]
    expected = [generate(model, prompt, 30) for prompt in prompts]

    assert answer(model, prompts) == expected


def answer(model: transformers.PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    runner = ModelRunner(model, find_device(), adapter_slot_count=1)
    engine = Engine(lambda _: runner, Mailbox().deliver, Scheduler(max_waiting=9, adapter_slot_count=1))
    sequences = [
        Sequence(Prompt(make_base(), None, prompt, Sampling(temperature=0, max_new_tokens=30), 0, (), str))
        for prompt in prompts
    ]
    for sequence in sequences:
        engine.submit(sequence)
    for _ in range(32):
        engine.step()
    return [sequence.token_ids for sequence in sequences]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Bloom", {}),
        ("Qwen3Next", {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4}),
        ("Mamba", {"state_size": 4}),
    ],
)
def test_model_that_does_not_fit_is_refused(kind, options):
    with pytest.raises(ModelUnsupported):
        support.prepare_model(make_random_model(kind, **options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Bloom", {}),
        ("Falcon", {"head_dim": None}),
        ("StableLm", {}),
        ("Nemotron", {}),
        ("GPTNeo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}),
        ("Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2}),
        ("Phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("GPTJ", {"rotary_dim": 4}),
        ("CodeGen", {"rotary_dim": 4, "n_head": 4}),
        ("XGLM", {"attention_heads": 4, "ffn_dim": 64}),
    ],
)
def test_families_that_are_known_to_need_the_general_path_do_need_it(kind, options, monkeypatch):
    model = make_random_model(kind, **options)
    assert serving_path.find_model_obstacle(model.config)
    monkeypatch.setattr(support, "find_model_obstacle", lambda config: None)

    with pytest.raises(ModelUnsupported):
        support.prepare_model(model)


def test_attention_sinks_in_16_bits_are_rounded_as_transformers_rounds_them():
    model = make_random_model("GptOss", **MODELS["GptOss"]).to(torch.bfloat16)
    ids = torch.arange(12)
    with torch.inference_mode():
        expected = model(input_ids=ids[None], use_cache=False).logits[0].float()
    path = support.prepare_model(model).path

    with torch.inference_mode():
        found = support._probe(path, model, ids, uses_kernels=False)[1]

    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_model_that_comes_out_wrong_is_refused(monkeypatch):
    model = make_random_model("Llama")
    monkeypatch.setattr(support.attention, "_repeat_kv", lambda states, groups: states.repeat(groups, 1, 1))

    with pytest.raises(ModelUnsupported, match="comes out wrong"):
        support.prepare_model(model)


def test_context_ends_where_angles_would_depend_on_the_batch():
    rope = {
        "rope_type": "dynamic",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
    }

    assert support.context_length(make_random_model("Llama", rope_parameters=rope)) == 32
    assert support.context_length(make_random_model("Llama")) == 128
