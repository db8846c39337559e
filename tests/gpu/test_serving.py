"""The engine's GPU path, with kernels and CUDA graphs, against PEFT on the same device."""

import base64
import contextlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.core.engine.messages import BaseModelRef
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from tests.worker.inference.conftest import ADAPTERS, peft_warnings_ignored
from tests.worker.inference.drafts.drafting import draft_at_random
from tests.worker.inference.fakes import Mailbox
from worker.inference.adapters.cache import read_adapter
from worker.inference.batching import executor
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine, EngineOptions
from worker.inference.model import step_graphs
from worker.inference.model.runner import ModelRunner
from worker.models.base_model import load_for_serving
from worker.models.device import find_device

NEW_TOKENS = 12
# Log-probabilities of one token, computed in two ways.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}


@pytest.fixture(params=TOLERANCE)
def dtype(request) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["graphs", "eager"])
def runner(request, dtype, models_folder: Path) -> ModelRunner:
    device = find_device()
    quantization = QuantizationSpec(load_in_4bit=False, bnb_4bit_compute_dtype=dtype)
    model = load_for_serving(models_folder / "tiny-llama", quantization, device)
    runner = ModelRunner(
        model, device, adapter_slot_count=4, max_rows=6, cache_share=0.01, uses_graphs=request.param
    )
    runner.warm_up()
    return runner


def test_kernels_and_graphs_are_in_use(runner, request):
    assert runner._uses_kernels
    assert (runner._decode_graphs is not None) == ("graphs-" in request.node.name)


def test_log_probabilities_are_those_of_peft(runner, dtype, models_folder, adapters_folder):
    sequences = answer(runner, adapters_folder, dtype)
    reference = load_with_peft(models_folder, adapters_folder, dtype)

    for sequence, logprobs in sequences:
        expected = reference_logprobs(reference, sequence)
        assert len(logprobs) == NEW_TOKENS
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=TOLERANCE[dtype], rtol=0.05)


def test_log_probabilities_with_drafts_are_those_of_peft(
    runner, dtype, models_folder, adapters_folder, monkeypatch
):
    assert runner.capacity.verified_positions
    made = {_key(sequence): sequence.token_ids for sequence, _ in answer(runner, adapters_folder, dtype)}
    draft_at_random(monkeypatch, random.Random(0), lambda sequence: made[_key(sequence)])

    sequences = answer(runner, adapters_folder, dtype, speculates=True)

    assert sum(sequence.accepted_count for sequence, _ in sequences) > NEW_TOKENS
    if dtype == "float32":
        assert {_key(sequence): sequence.token_ids for sequence, _ in sequences} == made
    reference = load_with_peft(models_folder, adapters_folder, dtype)
    for sequence, logprobs in sequences:
        expected = reference_logprobs(reference, sequence)
        assert len(logprobs) == NEW_TOKENS
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=TOLERANCE[dtype], rtol=0.05)


def test_captured_steps_follow_an_adapter_to_another_slot(
    runner, dtype, models_folder, adapters_folder, monkeypatch
):
    monkeypatch.setattr(executor, "_STEPS_BEFORE_SWAP", 4)
    monkeypatch.setattr(step_graphs, "_STEPS_BEFORE_CAPTURE", 2)
    reference = load_with_peft(models_folder, adapters_folder, dtype)
    mail = Mailbox()
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=99, adapter_slot_count=4))
    first, second = list(ADAPTERS)[:2]
    # Both get a slot; then the second runs alone, and then the first.
    for names in ((first, second), (second,), (first,), (None, second)):
        sequences = [new_sequence(adapters_folder, name, 40, dtype) for name in names]
        for sequence in sequences:
            engine.submit(sequence)
        while not all(map(mail.has_ended, sequences)):
            engine.step()
        for sequence in sequences:
            expected, found = reference_logprobs(reference, sequence), logprobs_of(sequence, mail)
            torch.testing.assert_close(torch.tensor(found), expected, atol=TOLERANCE[dtype], rtol=0.05)

    assert [sequence.adapter_slot for sequence in sequences] == [0, 1]


def _key(sequence: Sequence) -> tuple[object, ...]:
    return sequence.adapter_id, *sequence.prompt.token_ids


def test_embeddings_are_those_of_peft(runner, dtype, models_folder, adapters_folder):
    mail = Mailbox()
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=99, adapter_slot_count=4))
    sequences = []
    for length in (1, 5, 40, 90):
        for name in (None, *ADAPTERS):
            prompt = new_sequence(adapters_folder, name, length, dtype).prompt
            # Beside answers, which are read in the same steps.
            sequences += [Sequence(replace(prompt, embeds=True)), Sequence(prompt)]
    for sequence in sequences:
        engine.submit(sequence)
    while not all(map(mail.has_ended, sequences)):
        engine.step()

    reference = load_with_peft(models_folder, adapters_folder, dtype)
    for sequence in sequences[::2]:
        packed = base64.b64decode(mail.end(sequence).embedding)
        found = torch.frombuffer(bytearray(packed), dtype=torch.float32)
        cosine = torch.dot(found, reference_embedding(reference, sequence))
        assert cosine > (0.99999 if dtype == "float32" else 0.999)


def answer(
    runner: ModelRunner, adapters_folder: Path, dtype: str, *, speculates: bool = False
) -> list[tuple[Sequence, list[float]]]:
    """Mixed greedy answers: all adapters and none, prompts of all lengths, arriving one after another."""
    mail = Mailbox()
    engine = Engine(
        lambda _: runner,
        mail.deliver,
        Scheduler(max_waiting=99, adapter_slot_count=4),
        options=EngineOptions(speculates=speculates),
    )
    sequences = [
        new_sequence(adapters_folder, name, length, dtype)
        for length in (1, 5, 40, 90)
        for name in (None, *ADAPTERS)
    ]
    for sequence in sequences:
        engine.submit(sequence)
        engine.step()
    while not all(map(mail.has_ended, sequences)):
        engine.step()
    return [(sequence, logprobs_of(sequence, mail)) for sequence in sequences]


def logprobs_of(sequence: Sequence, mail: Mailbox) -> list[float]:
    return [token.logprob for reply in mail.replies[sequence] for token in getattr(reply, "tokens", 0) or []]


def new_sequence(adapters_folder: Path, name: str | None, length: int, dtype: str) -> Sequence:
    draw = random.Random(length)
    adapter = read_adapter(name, adapters_folder / name) if name else None
    return Sequence(
        Prompt(
            base_model=BaseModelRef(name="tiny-llama", quantization=QuantizationSpec(load_in_4bit=False)),
            adapter=adapter.ready_for(getattr(torch, dtype), pinned=True) if adapter else None,
            token_ids=[draw.randrange(3, 290) for _ in range(length)],
            sampling=Sampling(temperature=0, max_new_tokens=NEW_TOKENS, logprobs=0),
            seed=0,
            end_ids=(),
            decode=lambda ids: "".join(chr(ord("a") + index % 26) for index in ids),
            token_bytes=lambda _: b"",
        )
    )


def load_with_peft(models_folder: Path, adapters_folder: Path, dtype: str) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(
        models_folder / "tiny-llama", dtype=dtype, device_map={"": "cuda"}
    )
    first, *others = ADAPTERS
    with peft_warnings_ignored():
        model = PeftModel.from_pretrained(
            base, adapters_folder / first, adapter_name=first, autocast_adapter_dtype=False
        )
        for name in others:
            model.load_adapter(adapters_folder / name, adapter_name=name, autocast_adapter_dtype=False)
    return model.eval()


@torch.inference_mode()
def reference_embedding(model: PeftModel, sequence: Sequence) -> torch.Tensor:
    """The mean of transformers' last hidden states with PEFT's adapter, of length 1."""
    ids = torch.tensor([sequence.prompt.token_ids], device="cuda")
    if sequence.adapter_id is not None:
        model.set_adapter(sequence.adapter_id)
    with model.disable_adapter() if sequence.adapter_id is None else contextlib.nullcontext():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    mean = states[0].float().mean(0).cpu()
    return mean / mean.norm()


@torch.inference_mode()
def reference_logprobs(model: PeftModel, sequence: Sequence) -> torch.Tensor:
    """PEFT's log-probability of each token that the engine has made."""
    ids = torch.tensor([[*sequence.prompt.token_ids, *sequence.token_ids]], device="cuda")
    if sequence.adapter_id is None:
        with model.disable_adapter():
            logits = model(input_ids=ids).logits
    else:
        model.set_adapter(sequence.adapter_id)
        logits = model(input_ids=ids).logits
    start = len(sequence.prompt.token_ids)
    logprobs = logits[0, start - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(1, ids[0, start:, None])[:, 0].cpu()
