"""Log-probabilities of prompts are those of transformers and PEFT, whatever else is in the batch."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.core.engine.messages import BaseModelRef, Failed, Finished, PromptDelta, TokenDelta
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from tests.worker.inference.conftest import peft_warnings_ignored
from tests.worker.inference.engine.bench import Bench
from tests.worker.inference.fakes import Mailbox
from tests.worker.inference.general import conftest as general
from tests.worker.inference.random_models import generate
from tests.worker.inference.test_embeddings import SHARED, TARGETS, with_adapter
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.prompt_scores import ChunkRead, ScoredToken
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.general.model_copy import copy_modules
from worker.inference.model.runner import ModelRunner
from worker.models.base_model import load_for_serving
from worker.models.device import find_device

BASE = BaseModelRef(name="tiny-llama", quantization=QuantizationSpec(load_in_4bit=False))
END = 2


def expect(model: torch.nn.Module, token_ids: list[int]) -> list[float]:
    """The log-probabilities of all tokens but the first by transformers alone."""
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    found: list[float] = logprobs.gather(1, ids[0, 1:, None]).squeeze(1).tolist()
    return found


def make_sequence(token_ids: list[int], adapter: CachedAdapter | None, **fields: object) -> Sequence:
    sampling = Sampling(temperature=0, max_new_tokens=5)
    prompt = Prompt(
        BASE, adapter, token_ids, sampling, 0, {END}, lambda ids: "x" * len(ids), token_bytes=lambda _: b"x"
    )
    return Sequence(replace(prompt, **fields))


def prompt_of(mail: Mailbox, sequence: Sequence) -> PromptDelta:
    (found,) = [reply for reply in mail.replies[sequence] if isinstance(reply, PromptDelta)]
    return found


KINDS = [
    {"prompt_logprobs": 2, "reads_only": True},
    {"prompt_logprobs": 0},
    {"reads_only": True, "in_reference": True},
    {"embeds": True},
    {},
]


@pytest.mark.parametrize("chunk", [7, 512])
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
    sizes = {"prefill_tokens_per_step": 2 * chunk, "scored_tokens_per_step": chunk}
    monkeypatch.setattr(runner, "capacity", replace(runner.capacity, **sizes))
    # As on a GPU: the next step begins before anybody has seen the tokens of the last one.
    monkeypatch.setattr(runner, "is_asynchronous", overlaps)
    plain = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    mail, rng = Mailbox(), random.Random(chunk)
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=99, adapter_slot_count=4))
    sequences = []
    for index in range(30):
        kind = dict(KINDS[index % len(KINDS)])
        token_ids = SHARED[: rng.choice([1, 17, 40])] + [
            rng.randrange(3, 290) for _ in range(rng.randrange(20))
        ]
        if "in_reference" in kind:
            kind["in_reference"] = [place % 2 == 1 for place in range(len(token_ids))]
        name = [None, "everything", "first-layer"][index % 3]
        sequences.append(make_sequence(token_ids, adapters.get(name or ""), **kind))
        engine.submit(sequences[-1])
    while not all(map(mail.has_ended, sequences)):
        engine.step()
    for sequence in sequences:
        token_ids, prompt = list(sequence.prompt.token_ids), sequence.prompt
        reference = with_adapter(plain, adapters_folder, sequence.adapter_id)
        wanted = expect(reference, token_ids)
        end = mail.end(sequence)
        assert isinstance(end, Finished)
        if prompt.makes_tokens:
            assert sequence.token_ids == generate(reference, token_ids, 5, end=END)
        if prompt.prompt_logprobs is not None:
            tokens = prompt_of(mail, sequence).tokens
            assert [one.token_id for one in tokens] == token_ids[1:]
            assert [one.logprob for one in tokens] == pytest.approx(wanted, abs=2e-4)
            assert {len(one.top) for one in tokens} <= {prompt.prompt_logprobs}
        if prompt.in_reference is not None:
            assert end.likelihood is not None
            assert end.likelihood.tokens == len(token_ids) // 2
            assert end.likelihood.logprob == pytest.approx(math.fsum(wanted[::2]), abs=1e-3)


def test_the_likeliest_tokens_in_place_of_each_are_named(models_folder: Path) -> None:
    model = load_for_serving(models_folder / "tiny-llama", BASE.quantization, find_device())
    runner = ModelRunner(model, find_device(), adapter_slot_count=1, max_rows=1)
    mail = Mailbox()
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=9, adapter_slot_count=1))
    sequence = make_sequence(SHARED, None, prompt_logprobs=3, reads_only=True)
    engine.submit(sequence)
    while not mail.has_ended(sequence):
        engine.step()
    plain = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    with torch.no_grad():
        top = plain(input_ids=torch.tensor([SHARED])).logits[0].log_softmax(-1).topk(3)
    for place, token in enumerate(prompt_of(mail, sequence).tokens):
        assert [one.token_id for one in token.top] == top.indices[place].tolist()
        assert [one.logprob for one in token.top] == pytest.approx(top.values[place].tolist(), abs=2e-4)


@pytest.mark.parametrize("family", ["Llama", "Mamba", "GPT2", "Gemma2"])
def test_on_the_general_path_they_are_those_of_peft(family: str, tmp_path: Path) -> None:
    model = general.make_model(family)
    with peft_warnings_ignored():
        folder = general.save_adapter(
            model, tmp_path / "adapter", target_modules=TARGETS.get(family, "all-linear")
        )
        bench = general.make_bench(model)
        stored = read_adapter("adapter", folder)
        sequences = [
            Sequence(
                replace(
                    general.make_sequence(token_ids, adapter, count=4).prompt,
                    prompt_logprobs=1,
                    reads_only=reads_only,
                    token_bytes=lambda _: b"x",
                )
            )
            for adapter in (None, stored)
            for token_ids, reads_only in (([5], True), ([5, 6, 7, 8] * 5, True), ([5, 6, 7], False))
        ]
        bench.run(*sequences)
        for sequence in sequences:
            own = copy_modules(model, own=dict(model.named_parameters()))
            reference = PeftModel.from_pretrained(own, folder).eval() if sequence.adapter_id else own
            token_ids = list(sequence.prompt.token_ids)
            found = [one.logprob for one in prompt_of(bench.mail, sequence).tokens]
            assert found == pytest.approx(expect(reference, token_ids), abs=2e-4)
            if sequence.prompt.makes_tokens:
                with_peft = folder if sequence.adapter_id else None
                assert sequence.token_ids == general.generate_with_peft(model, with_peft, token_ids, 4)


class Scores:
    """Log-probabilities that are on the host."""

    def __init__(self, *logprobs: float) -> None:
        self._logprobs = logprobs

    def to_host(self) -> list[ScoredToken]:
        return [ScoredToken(logprob) for logprob in self._logprobs]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """An engine whose runner finds each token of a prompt half as probable as it could be."""
    bench = Bench()
    monkeypatch.setattr(
        bench.runner,
        "prefill",
        lambda prefills, *_, **__: [ChunkRead(scores=Scores(*[-0.5] * one.token_count)) for one in prefills],
    )
    return bench


def submit(bench: Bench, length: int, **fields: object) -> Sequence:
    sequence = bench.submit(prompt_length=length, max_new_tokens=2)
    sequence.prompt = replace(sequence.prompt, token_bytes=lambda id_: bytes([96 + id_]), **fields)
    return sequence


def test_they_come_before_the_answer(bench: Bench) -> None:
    sequence = submit(bench, 4, prompt_logprobs=0)
    bench.finish(sequence)
    first, *others = bench.mail.replies[sequence]
    assert isinstance(first, PromptDelta)
    assert (bytes(first.first.bytes), [one.logprob for one in first.tokens]) == (b"a", [-0.5] * 3)
    assert [type(one) for one in others] == [TokenDelta, TokenDelta, Finished]


@pytest.mark.parametrize("length", [1, 100])
def test_a_prompt_that_is_only_read_may_fill_the_context(bench: Bench, length: int) -> None:
    fitting, longer = (submit(bench, size, prompt_logprobs=0, reads_only=True) for size in (length, 101))
    bench.finish(fitting, longer)
    end, refused = bench.mail.end(fitting), bench.mail.end(longer)
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("length", length, 0)
    assert len(prompt_of(bench.mail, fitting).tokens) == length - 1
    assert isinstance(refused, Failed)
    assert refused.code == "context_length_exceeded"


def test_scores_that_are_not_finite_are_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = submit(bench, 2, prompt_logprobs=0)
    monkeypatch.setattr(bench.runner, "prefill", lambda *_, **__: [ChunkRead(scores=Scores(math.nan))])
    bench.finish(sequence)
    end = bench.mail.end(sequence)
    assert isinstance(end, Failed)
    assert end.code == "scores_not_finite"


def test_long_prompts_hold_up_no_stream_and_no_other_prompt(bench: Bench) -> None:
    capacity = replace(bench.runner.capacity, block_count=10**4, context_length=10**5)
    bench.runner.capacity = replace(capacity, scored_tokens_per_step=20)
    stream = bench.submit(max_new_tokens=50)
    bench.engine.step()
    scored = submit(bench, 5000, prompt_logprobs=0)
    other = bench.submit(prompt_length=100)
    before = len(stream.token_ids)
    bench.engine.step()
    assert len(stream.token_ids) == before + 1
    assert (scored.prefilled_count, other.prefilled_count) == (20, 99)
