"""Whatever else is in the batch, an answer has exactly the tokens that PEFT generates alone."""

import random
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.core.engine.messages import BaseModelRef, Finished
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from tests.tiny_model import CONTEXT_LENGTH
from tests.worker.inference.conftest import ADAPTERS, peft_warnings_ignored
from tests.worker.inference.drafts.drafting import draft_at_random
from tests.worker.inference.fakes import Mailbox
from tests.worker.inference.random_models import generate
from worker.inference.adapters.cache import CachedAdapter
from worker.inference.adapters.slots import SlotSwap
from worker.inference.batching import executor
from worker.inference.batching.embedding import HiddenSum
from worker.inference.batching.model_batch import Prefill
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine, EngineOptions
from worker.inference.model import runner as model_runner
from worker.inference.model.prefill import SIZES
from worker.inference.model.runner import ModelRunner
from worker.inference.sampling.sampler import SampledBatch
from worker.models.base_model import load_for_serving
from worker.models.device import find_device

END = 2
REQUEST_COUNT = 60
SCHEDULE_COUNT = 200
# Two and a half blocks: prompts that begin with it share two, and part of one that they must not share.
SHARED_PROMPT = tuple(range(100, 140))
BASE = BaseModelRef(name="tiny-llama", quantization=QuantizationSpec(load_in_4bit=False))


@dataclass(frozen=True)
class Request:
    prompt_ids: tuple[int, ...]
    adapter: str | None
    max_new_tokens: int
    expected: list[int]


@pytest.fixture(scope="module")
def requests(models_folder: Path, adapters_folder: Path) -> list[Request]:
    """Prompts of all lengths over all adapters, and what PEFT generates for each alone."""
    rng = random.Random(0)
    plain = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    tuned = load_with_peft(models_folder, adapters_folder)
    made = []
    for index in range(REQUEST_COUNT):
        adapter = [None, *ADAPTERS][index % (len(ADAPTERS) + 1)]
        own_ids = tuple(rng.randrange(3, 290) for _ in range(rng.choice([1, 3, 9, 20, 50])))
        prompt_ids = rng.choice([(), SHARED_PROMPT]) + own_ids
        max_new_tokens = rng.choice([1, 4, 12, 25])
        if adapter:
            tuned.set_adapter(adapter)
        expected = generate(tuned if adapter else plain, prompt_ids, max_new_tokens, end=END)
        made.append(Request(prompt_ids, adapter, max_new_tokens, expected))
    return made


@pytest.fixture(scope="module")
def runner(models_folder: Path) -> ModelRunner:
    return new_runner(models_folder)


def new_runner(models_folder: Path, *, slots: int = 4, max_rows: int = 6) -> ModelRunner:
    device = find_device()
    model = load_for_serving(models_folder / "tiny-llama", BASE.quantization, device)
    return ModelRunner(model, device, adapter_slot_count=slots, max_rows=max_rows)


def load_with_peft(models_folder: Path, adapters_folder: Path) -> PeftModel:
    first, *others = ADAPTERS
    base = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    with peft_warnings_ignored():
        model = PeftModel.from_pretrained(base, adapters_folder / first, adapter_name=first)
        for name in others:
            model.load_adapter(adapters_folder / name, adapter_name=name)
    return model


def as_sequence(
    request: Request, adapters: dict[str, CachedAdapter], sampling: Sampling | None = None
) -> Sequence:
    return Sequence(
        Prompt(
            base_model=BASE,
            adapter=adapters[request.adapter] if request.adapter else None,
            token_ids=request.prompt_ids,
            sampling=sampling or Sampling(temperature=0, max_new_tokens=request.max_new_tokens),
            seed=sampling.seed or 0 if sampling else 0,
            end_ids={END},
            decode=lambda ids: "".join(map(chr, ids)),
        )
    )


def new_engine(runner: ModelRunner, mail: Mailbox, *, slots: int = 4, speculates: bool = False) -> Engine:
    return Engine(
        lambda _: runner,
        mail.deliver,
        Scheduler(max_waiting=999, adapter_slot_count=slots),
        options=EngineOptions(speculates=speculates),
    )


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


def test_first_tokens_come_without_a_decode_step_where_no_other_sequence_needs_one(
    requests, adapters, runner, monkeypatch
):
    steps: list[int] = []
    forward_rows = runner._forward_rows

    def forward_and_count(count: int, *args: int, **options: int) -> torch.Tensor:
        steps.append(count)
        return forward_rows(count, *args, **options)

    monkeypatch.setattr(runner, "_forward_rows", forward_and_count)
    mine = {one.prompt_ids: one for one in requests if len(one.prompt_ids) > 9 and len(one.expected) > 3}
    first, second, later = list(mine.values())[:3]
    engine = new_engine(runner, Mailbox())
    together = [as_sequence(first, adapters), as_sequence(second, adapters)]
    for sequence in together:
        engine.submit(sequence)
    engine.step()

    assert steps == []
    assert [one.token_ids for one in together] == [first.expected[:1], second.expected[:1]]
    last = as_sequence(later, adapters)
    engine.submit(last)
    engine.step()
    assert steps == [3]
    assert [len(one.token_ids) for one in [*together, last]] == [2, 2, 1]


@pytest.mark.parametrize("failing", [1, 2, 5])
@pytest.mark.parametrize("is_asynchronous", [False, True])
@pytest.mark.parametrize("part", ["copy", "first tokens"])
def test_a_step_that_runs_out_of_memory_is_computed_again(
    part, failing, is_asynchronous, requests, adapters, runner, monkeypatch
):
    """Copying tokens to the host fails once, or computing the logits of first tokens or of a step."""
    monkeypatch.setattr(runner, "is_asynchronous", is_asynchronous)
    owner, name = (model_runner, "DeviceTokens") if part == "copy" else (runner._path, "logits")
    right, calls = getattr(owner, name), count(1)

    def fail_once(*given):
        if next(calls) == failing:
            raise torch.OutOfMemoryError("none left")
        return right(*given)

    monkeypatch.setattr(owner, name, fail_once)
    mine = list({one.prompt_ids: one for one in requests if len(one.expected) > 3}.values())[:3]
    engine = new_engine(runner, Mailbox())
    sequences = [as_sequence(one, adapters) for one in mine]
    for sequence in sequences:
        engine.submit(sequence)
    for _ in range(60):
        engine.step()

    assert [one.token_ids for one in sequences] == [one.expected for one in mine]
    assert next(calls) > failing


def test_prompts_padded_to_captured_sizes_answer_as_peft_does_alone(requests, adapters, runner, monkeypatch):
    """As on a GPU: with the kernel of attention for prompts, several chunks and padding in a pass."""
    pytest.importorskip("worker.kernels.serving.prompt_attention")
    passes: list[int] = []

    class Captured:
        def size(self, needed: int) -> int | None:
            return next((size for size in SIZES if size >= needed), None)

        def run(self, needed: int, slot_count: int) -> torch.Tensor:
            passes.append(needed)
            return runner._prefilling._forward_captured(self.size(needed))

        def discard(self) -> None: ...

    monkeypatch.setattr(runner._prefilling, "_graphs", Captured())
    long = [one for one in requests if len(one.prompt_ids) > 9][:6]
    done = play(random.Random(0), runner, adapters, list(long), arrivals=0.9)

    assert [sequence.token_ids for sequence in done] == [request.expected for request in done.values()]
    assert max(passes) > max(len(one.prompt_ids) for one in long)


def vary(runner: ModelRunner, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in chunks of a random length; steps overlap or not."""
    capacity = replace(runner.capacity, prefill_tokens_per_step=rng.choice([7, 30, 512]))
    monkeypatch.setattr(runner, "capacity", capacity)
    # As on a GPU: the next step begins before anybody has seen the tokens of the last one.
    monkeypatch.setattr(runner, "is_asynchronous", rng.random() < 0.5)


def play(
    rng: random.Random,
    runner: ModelRunner,
    adapters: dict[str, CachedAdapter],
    todo: list[Request],
    *,
    speculates: bool = False,
    arrivals: float = 0.4,
) -> dict[Sequence, Request]:
    """Submit requests and cancel some of them at random steps. Returns those that finished, by sequence."""
    mail = Mailbox()
    engine = new_engine(runner, mail, speculates=speculates)
    live: dict[Sequence, Request] = {}
    done: dict[Sequence, Request] = {}
    while todo or live:
        while todo and rng.random() < arrivals:
            request = todo.pop()
            sequence = as_sequence(request, adapters)
            live[sequence] = request
            engine.submit(sequence)
        if live and rng.random() < 0.05:
            cancelled = rng.choice(list(live))
            engine.cancel(cancelled)
            del live[cancelled]
        engine.step()
        done |= {sequence: live.pop(sequence) for sequence in list(live) if mail.has_ended(sequence)}
    assert {type(mail.end(sequence)) for sequence in done} <= {Finished}
    assert engine.running_count == 0
    assert any(sequence.accepted_count for sequence in done) == speculates
    return done


def test_prompts_of_the_schedules_share_blocks(requests, adapters, runner, monkeypatch):
    """The test above says nothing about shared prefixes without this."""
    read: list[int] = []
    read_all = runner.prefill

    def read_and_count(prefills: list[Prefill]) -> list[HiddenSum | None]:
        read.append(sum(prefill.token_count for prefill in prefills))
        return read_all(prefills)

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
