"""Embeddings are the mean of transformers' last hidden states, of length 1, whatever else is in the batch."""

import base64
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.core.engine.messages import BaseModelRef, Failed, Finished
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from tests.worker.inference.conftest import peft_warnings_ignored
from tests.worker.inference.engine.bench import Bench
from tests.worker.inference.fakes import Mailbox, make_capacity
from tests.worker.inference.general import conftest as general
from tests.worker.inference.random_models import generate
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.general.model_copy import copy_modules
from worker.inference.model.runner import ModelRunner
from worker.models.base_model import load_for_serving
from worker.models.device import find_device

BASE = BaseModelRef(name="tiny-llama", quantization=QuantizationSpec(load_in_4bit=False))
END = 2
# Every text begins with it: a cached beginning has no hidden states.
SHARED = list(range(100, 140))

# PEFT refuses other layers of Mamba.
TARGETS = {"Mamba": ["in_proj"]}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def unpack(reply: Finished | Failed) -> np.ndarray:
    assert isinstance(reply, Finished)
    assert reply.embedding is not None
    return np.frombuffer(base64.b64decode(reply.embedding), dtype="<f4")


def expect(model: torch.nn.Module, token_ids: list[int]) -> np.ndarray:
    """The embedding by transformers alone."""
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([token_ids]), output_hidden_states=True)
    mean = outputs.hidden_states[-1][0].double().mean(0)
    found: np.ndarray = (mean / mean.norm()).numpy()
    return found


@pytest.mark.parametrize("chunk", [7, 16, 512])
@pytest.mark.parametrize("overlaps", [False, True])
def test_in_a_mixed_batch_they_are_those_of_peft_and_change_no_answer(
    models_folder: Path,
    adapters_folder: Path,
    adapters: dict[str, CachedAdapter],
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    overlaps: bool,
) -> None:
    model = load_for_serving(models_folder / "tiny-llama", BASE.quantization, find_device())
    runner = ModelRunner(model, find_device(), adapter_slot_count=4, max_rows=6)
    monkeypatch.setattr(runner, "capacity", replace(runner.capacity, prefill_tokens_per_step=chunk))
    # As on a GPU: the next step begins before anybody has seen the tokens of the last one.
    monkeypatch.setattr(runner, "is_asynchronous", overlaps)
    plain = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    mail, rng = Mailbox(), random.Random(chunk)
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=99, adapter_slot_count=4))
    sequences = []
    for index in range(24):
        token_ids = SHARED[: rng.choice([1, 17, 40])] + [
            rng.randrange(3, 290) for _ in range(rng.randrange(20))
        ]
        name = [None, "everything", "first-layer"][index % 3]
        sequences.append(make_sequence(token_ids, adapters.get(name or ""), embeds=index % 2 == 0))
        engine.submit(sequences[-1])
    while not all(map(mail.has_ended, sequences)):
        engine.step()
    for sequence in sequences:
        token_ids = list(sequence.prompt.token_ids)
        reference = with_adapter(plain, adapters_folder, sequence.adapter_id)
        if sequence.prompt.embeds:
            np.testing.assert_allclose(unpack(mail.end(sequence)), expect(reference, token_ids), atol=2e-5)
        else:
            assert sequence.token_ids == generate(reference, token_ids, 5, end=END)


@pytest.mark.parametrize("family", ["Llama", "Mamba", "Lfm2", "GPT2", "Gemma2", "Qwen3_5", "GptOss"])
def test_on_the_general_path_they_are_those_of_peft(family: str, tmp_path: Path) -> None:
    model = general.make_model(family)
    with peft_warnings_ignored():
        folder = general.save_adapter(
            model, tmp_path / "adapter", target_modules=TARGETS.get(family, "all-linear")
        )
        bench = general.make_bench(model)
        stored = read_adapter("adapter", folder)
        sequences = [
            as_embedding(general.make_sequence(token_ids, adapter))
            for adapter in (None, stored)
            for token_ids in ([5], [5, 6, 7, 8] * 5)
        ]
        beside = general.make_sequence([5, 6, 7], count=4)
        bench.run(*sequences, beside)
        for sequence in sequences:
            own = copy_modules(model, own=dict(model.named_parameters()))
            reference = PeftModel.from_pretrained(own, folder).eval() if sequence.adapter_id else own
            wanted = expect(reference, list(sequence.prompt.token_ids))
            np.testing.assert_allclose(unpack(bench.mail.end(sequence)), wanted, atol=2e-5)
        assert beside.token_ids == general.generate_with_peft(model, None, [5, 6, 7], 4)


def test_their_usage_counts_no_token_made(bench: Bench) -> None:
    sequence = bench.submit(prompt_length=5, embeds=True)
    bench.finish(sequence)
    end = bench.mail.end(sequence)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (5, 0)
    np.testing.assert_allclose(unpack(end), np.array([1, 1]) / 2**0.5, atol=1e-6)


def test_a_text_may_fill_the_context(bench: Bench) -> None:
    fitting, longer = (bench.submit(prompt_length=length, embeds=True) for length in (100, 101))
    bench.finish(fitting, longer)
    assert isinstance(bench.mail.end(fitting), Finished)
    refused = bench.mail.end(longer)
    assert refused.code == "context_length_exceeded"
    assert refused.message == (
        "This model's maximum context length is 100 tokens. "
        "However, the prompt is too long: it has 101 tokens."
    )


def test_long_texts_hold_up_no_stream(bench: Bench) -> None:
    bench.runner.capacity = make_capacity(block_count=10**4, context_length=10**5)
    stream = bench.submit(max_new_tokens=50)
    bench.engine.step()
    bench.submit(prompt_length=5000, embeds=True)
    before = len(stream.token_ids)
    bench.engine.step()
    assert len(stream.token_ids) == before + 1


def test_a_cancelled_one_leaves_the_batch(bench: Bench) -> None:
    bench.runner.capacity = make_capacity(block_count=10**4, context_length=10**5)
    sequence = bench.submit(prompt_length=5000, embeds=True)
    bench.engine.step()
    bench.engine.cancel(sequence)
    bench.engine.step()
    assert bench.engine.running_count == 0
    assert sequence not in bench.mail.replies


def test_an_error_ends_only_the_one_that_it_comes_from(bench: Bench) -> None:
    bad, good, answer = bench.submit(embeds=True), bench.submit(embeds=True), bench.submit(max_new_tokens=2)
    bench.runner.errors_of[bad] = RuntimeError("Wrong.")
    bench.finish(bad, good, answer)
    ends = [type(bench.mail.end(sequence)) for sequence in (bad, good, answer)]
    assert ends == [Failed, Finished, Finished]


def test_states_that_are_not_finite_are_an_error(bench: Bench) -> None:
    sequence = bench.submit(token_ids=[math.inf], embeds=True)
    bench.finish(sequence)
    assert bench.mail.end(sequence).code == "scores_not_finite"


def make_sequence(token_ids: list[int], adapter: CachedAdapter | None, *, embeds: bool) -> Sequence:
    sampling = Sampling(temperature=0, max_new_tokens=5)
    prompt = Prompt(BASE, adapter, token_ids, sampling, 0, {END}, lambda ids: "x" * len(ids), embeds=embeds)
    return Sequence(prompt)


def as_embedding(sequence: Sequence) -> Sequence:
    return Sequence(replace(sequence.prompt, embeds=True))


def with_adapter(plain: PreTrainedModel, folder: Path, name: str | None) -> torch.nn.Module:
    if name is None:
        return plain
    own = copy_modules(plain, own=dict(plain.named_parameters()))
    with peft_warnings_ignored():
        return PeftModel.from_pretrained(own, folder / name).eval()
