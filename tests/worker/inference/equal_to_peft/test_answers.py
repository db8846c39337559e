"""Whatever else is in the batch, an answer has exactly the tokens that PEFT generates alone."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.core.engine.messages import Finished
from app.core.engine.sampling import Sampling
from tests.tiny_model import CONTEXT_LENGTH
from tests.worker.inference.drafts.drafting import draft_at_random
from tests.worker.inference.equal_to_peft.playing import (
    END,
    REQUEST_COUNT,
    Request,
    as_sequence,
    new_engine,
    play,
    vary,
)
from tests.worker.inference.fakes import Mailbox
from tests.worker.inference.random_models import generate
from worker.inference.adapters.slots import SlotSwap
from worker.inference.batching import executor
from worker.inference.batching.model_batch import Prefill
from worker.inference.batching.prompt_scores import ChunkRead
from worker.inference.batching.sequence import Sequence
from worker.inference.model.runner import ModelRunner
from worker.inference.sampling.sampler import SampledBatch

SCHEDULE_COUNT = 200


@pytest.mark.parametrize("seed", range(SCHEDULE_COUNT))
def test_mixed_batches_answer_as_peft_does_alone(seed, requests, adapters, runner, monkeypatch):
    rng = random.Random(seed)
    vary(runner, rng, monkeypatch)
    expected = {request.prompt_ids: request.expected for request in requests}
    draft_at_random(monkeypatch, rng, lambda sequence: expected[tuple(sequence.prompt.token_ids)])
    done = play(rng, runner, adapters, rng.sample(requests, 15), speculates=seed % 2 == 0)

    assert [sequence.token_ids for sequence in done] == [request.expected for request in done.values()]


@pytest.mark.parametrize("seed", range(10))
def test_adapters_that_change_slots_answer_as_peft_does_alone(seed, requests, adapters, runner, monkeypatch):
    rng = random.Random(seed)
    vary(runner, rng, monkeypatch)
    monkeypatch.setattr(executor, "_STEPS_BEFORE_SWAP", 0)
    swaps: list[SlotSwap] = []
    swap_slots = runner.swap_slots

    def swap_and_record(swap: SlotSwap) -> bool:
        swaps.append(swap)
        return swap_slots(swap)

    monkeypatch.setattr(runner, "swap_slots", swap_and_record)
    done = play(rng, runner, adapters, rng.sample(requests, 30), arrivals=0.1)

    assert [sequence.token_ids for sequence in done] == [request.expected for request in done.values()]
    assert len(swaps) > 3


def test_prompts_of_the_schedules_share_blocks(requests, adapters, runner, monkeypatch):
    """The test above says nothing about shared prefixes without this."""
    read: list[int] = []
    read_all = runner.prefill

    def read_and_count(prefills: list[Prefill], ready: list[Sequence]) -> list[ChunkRead]:
        read.append(sum(prefill.token_count for prefill in prefills))
        return read_all(prefills, ready)

    monkeypatch.setattr(runner, "prefill", read_and_count)
    rng = random.Random(0)
    done = play(rng, runner, adapters, rng.sample(requests, REQUEST_COUNT))

    assert sum(read) < sum(len(request.prompt_ids) - 1 for request in done.values())


def test_adapters_change_what_the_model_says(requests):
    """The tests above say nothing about adapters without this."""
    endings = {(request.adapter, tuple(request.expected)) for request in requests}

    assert len(endings) > REQUEST_COUNT // 2


def test_a_seed_gives_the_same_text_alone_and_in_company(requests, adapters, runner):
    sampling = Sampling(
        temperature=0.9, top_p=0.9, top_k=40, repetition_penalty=1.1, seed=7, max_new_tokens=30
    )
    others = Sampling(temperature=1.5, max_new_tokens=40)

    def answer(company: list[Request]) -> list[int]:
        engine = new_engine(runner, Mailbox())
        for request in company:
            engine.submit(as_sequence(request, adapters, others))
        sequence = as_sequence(requests[1], adapters, sampling)
        engine.submit(sequence)
        for _ in range(80):
            engine.step()
        return sequence.token_ids

    assert answer([]) == answer(requests[2:6]) == answer(requests[6:9])


class Spoilt:
    """Makes the scores of one row of the model NaN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runner: ModelRunner, mail: Mailbox) -> None:
        self._sample = runner._sampler.sample
        self.mail = mail
        self.sequence: Sequence | None = None
        monkeypatch.setattr(runner._sampler, "sample", self)

    def __call__(self, logits_BV: torch.Tensor, first_row: int, active_B: torch.Tensor) -> SampledBatch:
        if self.sequence is not None and self.sequence.token_ids and not self.mail.has_ended(self.sequence):
            logits_BV[self.sequence.row - first_row] = torch.nan
        return self._sample(logits_BV, first_row, active_B)


@pytest.mark.parametrize("is_asynchronous", [False, True])
@pytest.mark.parametrize("culprit", ["scores that are no numbers", "a token that the model lacks"])
def test_neighbours_of_a_row_that_fails_answer_as_without_it(
    culprit, is_asynchronous, requests, adapters, runner, monkeypatch
):
    monkeypatch.setattr(runner, "is_asynchronous", is_asynchronous)
    mail = Mailbox()
    spoilt = Spoilt(monkeypatch, runner, mail)
    sampling = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.1, seed=7, max_new_tokens=20)

    def answer(odd: Sequence | None) -> list[list[int]]:
        spoilt.sequence = odd if culprit.startswith("scores") else None
        engine = new_engine(runner, mail)
        mine = [as_sequence(request, adapters, sampling) for request in requests[:4]]
        for sequence in mine[:2] + [odd] * (odd is not None) + mine[2:]:
            engine.submit(sequence)
        for _ in range(60):
            engine.step()
        assert {type(mail.end(sequence)) for sequence in mine} == {Finished}
        return [sequence.token_ids for sequence in mine]

    ids = requests[5].prompt_ids if culprit.startswith("scores") else (5, 10**9)
    endless = sampling.model_copy(update={"logit_bias": {END: -100}})
    odd = as_sequence(replace(requests[5], prompt_ids=ids), adapters, endless)
    assert answer(odd) == answer(None)
    assert mail.end(odd).code == ("scores_not_finite" if culprit.startswith("scores") else "invalid_request")


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_of_odd_settings_answer_as_without_them(seed, requests, adapters, runner):
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=seed, max_new_tokens=20)
    odd = [
        Sampling(temperature=1e-45, seed=1),
        Sampling(temperature=1.2e-38, top_p=5e-324, seed=1),
        Sampling(temperature=1e-5, repetition_penalty=0.01, min_p=1, top_k=2**63 - 1, seed=1),
    ]

    def answer(odd: list[Sampling]) -> list[int]:
        mail = Mailbox()
        engine = new_engine(runner, mail)
        mine = as_sequence(requests[1], adapters, sampling)
        company = [as_sequence(requests[2], adapters, settings) for settings in odd]
        for sequence in [*company, mine]:
            engine.submit(sequence)
        for _ in range(40):
            engine.step()
        assert {type(mail.end(sequence)) for sequence in [*company, mine] if mail.has_ended(sequence)} == {
            Finished
        }
        return mine.token_ids

    assert answer(odd) == answer([])


def test_context_is_filled_to_the_last_token(requests, adapters, runner, models_folder):
    mail = Mailbox()
    engine = new_engine(runner, mail)
    request = Request((5,) * (CONTEXT_LENGTH - 10), None, 100, [])
    sequence = as_sequence(request, adapters)
    engine.submit(sequence)
    for _ in range(20):
        engine.step()

    assert isinstance(mail.end(sequence), Finished)
    assert sequence.length <= CONTEXT_LENGTH
    plain = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    assert sequence.token_ids == generate(plain, request.prompt_ids, 10, end=END)
