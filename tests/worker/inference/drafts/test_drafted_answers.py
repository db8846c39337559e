"""Answers are the same whether drafted tokens are verified in them or not, whatever a request asks for."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from app.core.engine.messages import Finished, TokenDelta
from app.core.engine.sampling import Sampling
from app.core.errors.jobs import OutOfMemory
from tests.worker.inference.conftest import ADAPTERS
from tests.worker.inference.drafts.drafting import draft_at_random
from tests.worker.inference.equal_to_peft.playing import BASE, END, new_runner
from tests.worker.inference.fakes import Mailbox
from worker.inference.adapters.cache import CachedAdapter
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine, EngineOptions
from worker.inference.model.passes import verifying
from worker.inference.model.runner import ModelRunner

NEW_TOKENS = 24
SAMPLINGS = {
    "greedy": Sampling(temperature=0, max_new_tokens=NEW_TOKENS),
    "seeded": Sampling(temperature=1.1, top_p=0.95, top_k=60, seed=3, max_new_tokens=NEW_TOKENS),
    "penalties": Sampling(
        temperature=0.8,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.7,
        seed=4,
        max_new_tokens=NEW_TOKENS,
    ),
    "bias": Sampling(temperature=0.5, logit_bias={7: 6, 9: -100}, seed=5, max_new_tokens=NEW_TOKENS),
    "logprobs": Sampling(temperature=1, logprobs=3, seed=6, max_new_tokens=NEW_TOKENS),
    "one token": Sampling(temperature=0, max_new_tokens=1),
}


class Alternating:
    """A grammar: even tokens at even places of the answer, odd ones at odd places, and no more than ten."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def start(self):
        return Alternating()

    def allowed_tokens(self):
        word = 0x55555555 if self.count % 2 == 0 else -0x55555556
        return np.full(10, word if self.count < 10 else 1 << END, dtype=np.int32)

    def allowed_along(self, token_ids):
        masks = [self.allowed_tokens()]
        for token in token_ids:
            if token >= 320 or not int(masks[-1][token // 32]) >> token % 32 & 1:
                break
            masks.append(Alternating(self.count + len(masks)).allowed_tokens())
        return masks

    def accept_token(self, token_id):
        assert int(self.allowed_tokens()[token_id // 32]) >> token_id % 32 & 1
        self.count += 1


@dataclass(frozen=True)
class Wanted:
    """A request, and what of its answer a client sees."""

    prompt: Prompt

    def seen(self, mail: Mailbox, sequence: Sequence) -> tuple[object, ...]:
        end = mail.end(sequence)
        assert isinstance(end, Finished)
        tokens = [one for reply in mail.replies[sequence] for one in getattr(reply, "tokens", None) or []]
        return sequence.token_ids, mail.text(sequence), end.finish_reason, [one.token_id for one in tokens]


@pytest.fixture(scope="module")
def runner(models_folder: Path) -> ModelRunner:
    return new_runner(models_folder)


@pytest.fixture(scope="module")
def wanted(adapters: dict[str, CachedAdapter]) -> list[Wanted]:
    """A request of each kind, over adapters in turn."""
    rng = random.Random(0)
    names = [None, *ADAPTERS]
    prompts = []
    for index, sampling in enumerate(SAMPLINGS.values()):
        name = names[index % len(names)]
        prompt = Prompt(
            base_model=BASE,
            adapter=adapters[name] if name else None,
            token_ids=[rng.randrange(3, 290) for _ in range(rng.randint(1, 60))],
            sampling=sampling,
            seed=sampling.seed or 0,
            end_ids={END},
            decode=lambda ids: "".join(map(chr, ids)),
            token_bytes=lambda token: chr(token).encode(),
        )
        prompts += [prompt, replace(prompt, grammar=Alternating())]
    return [Wanted(prompt) for prompt in prompts]


def answer(
    runner: ModelRunner, wanted: list[Wanted], *, speculates: bool
) -> tuple[list[tuple[object, ...]], list[Sequence], Mailbox]:
    mail = Mailbox()
    engine = Engine(
        lambda _: runner,
        mail.deliver,
        Scheduler(max_waiting=99, adapter_slot_count=4),
        options=EngineOptions(speculates=speculates),
    )
    sequences = [Sequence(one.prompt) for one in wanted]
    for sequence in sequences:
        engine.submit(sequence)
    for _ in range(2000):
        if all(map(mail.has_ended, sequences)):
            break
        engine.step()
    return (
        [one.seen(mail, sequence) for one, sequence in zip(wanted, sequences, strict=True)],
        sequences,
        mail,
    )


@pytest.fixture
def plain(runner, wanted) -> list[tuple[object, ...]]:
    return answer(runner, wanted, speculates=False)[0]


def draft_answers(monkeypatch, seed, wanted, plain):
    """Draft what these requests will be answered, in part."""
    tokens = {id(one.prompt): seen[0] for one, seen in zip(wanted, plain, strict=True)}
    # Tokens after an end, which are never reached.
    draft_at_random(monkeypatch, random.Random(seed), lambda sequence: [*tokens[id(sequence.prompt)], 5, 5])


@pytest.mark.parametrize("is_asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_answers_are_the_same_with_drafts(seed, is_asynchronous, runner, wanted, plain, monkeypatch):
    monkeypatch.setattr(runner, "is_asynchronous", is_asynchronous)
    draft_answers(monkeypatch, seed, wanted, plain)

    found, sequences, _ = answer(runner, wanted, speculates=True)

    assert found == plain
    assert sum(one.accepted_count for one in sequences) > 5
    assert sum(one.drafted_count - one.accepted_count for one in sequences) > 5


def test_log_probabilities_are_the_same_with_drafts(runner, wanted, plain, monkeypatch):
    draft_answers(monkeypatch, 0, wanted, plain)
    made = []
    for speculates in (False, True):
        _, sequences, mail = answer(runner, wanted, speculates=speculates)
        deltas = [reply for one in sequences for reply in mail.replies[one] if isinstance(reply, TokenDelta)]
        made.append([token for delta in deltas for token in delta.tokens or []])

    assert len(made[0]) > NEW_TOKENS
    for before, after in zip(*made, strict=True):
        assert after.logprob == pytest.approx(before.logprob, abs=1e-4)
        assert [one.token_id for one in after.top] == [one.token_id for one in before.top]


@pytest.mark.parametrize("cut", [3, 8])
def test_a_stop_string_in_the_middle_of_a_draft_ends_the_answer(cut, runner, wanted, plain, monkeypatch):
    text = plain[0][1]
    stopped = replace(
        wanted[0].prompt,
        sampling=wanted[0].prompt.sampling.model_copy(update={"stop": [text[cut : cut + 2]]}),
    )
    wanted = [Wanted(stopped)]
    draft_answers(monkeypatch, 1, wanted, plain[:1])

    assert answer(runner, wanted, speculates=True)[0] == answer(runner, wanted, speculates=False)[0]


def test_where_verifying_fails_answers_are_made_token_by_token(runner, wanted, plain, monkeypatch):
    draft_answers(monkeypatch, 2, wanted, plain)
    tries = []

    def fail(*given):
        tries.append(given)
        raise OutOfMemory("There is no memory left.")

    monkeypatch.setattr(runner._verifying, "logits", fail)
    found, sequences, _ = answer(runner, wanted, speculates=True)

    assert found == plain
    assert len(tries) == 1
    assert not any(one.drafted_count for one in sequences)


def test_nothing_that_was_rejected_is_read_by_later_prompts(
    runner, models_folder, wanted, plain, monkeypatch
):
    fresh = new_runner(models_folder)
    draft_answers(monkeypatch, 3, wanted, plain)
    answer(fresh, wanted[:1], speculates=True)
    long = Wanted(
        replace(wanted[0].prompt, token_ids=[*wanted[0].prompt.token_ids, *plain[0][0], 17, 18], seed=1)
    )

    # The engine is another one, so that only the cache's contents are the same.
    expected = answer(runner, [long], speculates=False)[0]
    monkeypatch.undo()
    assert answer(fresh, [long], speculates=False)[0] == expected


def test_texts_that_repeat_themselves_are_drafted_by_the_engine_itself(runner, wanted):
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    # With a bias as large the answer is one token again and again.
    sampling = Sampling(temperature=0, logit_bias={40: 100}, max_new_tokens=60)
    mail = Mailbox()
    engine = Engine(
        lambda _: runner,
        mail.deliver,
        Scheduler(max_waiting=9, adapter_slot_count=4),
        clock,
        EngineOptions(speculates=True),
    )
    sequence = Sequence(replace(wanted[0].prompt, sampling=sampling))
    engine.submit(sequence)
    steps = 0
    while not mail.has_ended(sequence):
        engine.step()
        steps += 1

    assert sequence.token_ids == [40] * 60
    assert steps < 40
    timings = mail.end(sequence).timings
    assert 0 < timings.accepted_tokens <= timings.drafted_tokens
    counts = engine.metrics.counts
    assert (counts.draft_tokens, counts.accepted_tokens) == (timings.drafted_tokens, timings.accepted_tokens)


def test_positions_as_rows_of_their_own_have_the_same_logits(runner, wanted, plain, monkeypatch):
    """As on a GPU: by the kernels of decode steps, in captured sizes with padding."""
    paged_attention = pytest.importorskip("worker.kernels.serving.paged_attention")
    # A program for all keys of a row: Triton's interpreter takes its time for each.
    monkeypatch.setattr(paged_attention, "_ENOUGH_PROGRAMS", 1)
    short = {"max_new_tokens": 9}
    wanted = [
        Wanted(replace(one.prompt, sampling=one.prompt.sampling.model_copy(update=short)))
        for one in wanted[:3]
    ]
    plain = answer(runner, wanted, speculates=False)[0]
    draft_answers(monkeypatch, 4, wanted, plain)
    forward = runner._verifying
    sizes = []

    class Captured:
        def __init__(self, work, sizes):
            self.work, self.sizes = work, sizes

        def size(self, needed):
            return next((size for size in self.sizes if size >= needed), None)

        def run(self, needed, has_adapters):
            sizes.append(self.size(needed))
            return self.work(self.size(needed))

    monkeypatch.setattr(forward, "_context", replace(forward._context, uses_kernels=True))
    monkeypatch.setattr(forward, "_graphs", Captured(forward._forward_captured, verifying.SIZES))

    found, sequences, _ = answer(runner, wanted, speculates=True)

    assert found == plain
    assert sum(one.accepted_count for one in sequences) > 2
    assert len(set(sizes)) > 1


def test_a_model_whose_verifying_steps_are_wrong_has_none(runner, monkeypatch):
    capacity = runner.capacity
    runner.check_verifying()
    assert runner.capacity == capacity

    monkeypatch.setattr(runner, "capacity", capacity)
    right = runner._verifying.logits
    monkeypatch.setattr(runner._verifying, "logits", lambda *given: right(*given).flip(0))
    runner.check_verifying()
    assert runner.capacity.verified_positions == 0


def test_rows_without_a_draft_are_verified_with_the_others(runner, wanted, plain, monkeypatch):
    widths = []
    verify = runner.verify

    def watch(running, drafts):
        widths.append((len(running), len(drafts)))
        return verify(running, drafts)

    monkeypatch.setattr(runner, "verify", watch)
    draft_answers(monkeypatch, 5, wanted, plain)
    answer(runner, wanted, speculates=True)

    assert any(drafted < running for running, drafted in widths)
    assert any(drafted > 1 for _, drafted in widths)


def test_a_runner_that_can_not_verify_is_never_asked_to(runner, wanted, plain, monkeypatch):
    monkeypatch.setattr(runner, "capacity", replace(runner.capacity, verified_positions=0))
    monkeypatch.setattr(runner, "verify", lambda *given: pytest.fail("asked to verify"))
    draft_answers(monkeypatch, 6, wanted, plain)

    assert answer(runner, wanted, speculates=True)[0] == plain


def test_verifying_steps_are_checked_after_the_tensors_of_adapters_are_allocated(runner, monkeypatch):
    """A graph that is captured before refers to weights that are reallocated then."""
    calls = []

    class Graphs:
        def capture_all(self, slot_count):
            calls.append("capture")

        def run(self, needed, slot_count):
            calls.append("capture")

    monkeypatch.setattr(runner, "_decode_graphs", Graphs())
    monkeypatch.setattr(runner, "_compile_sampling", lambda logits_1V: calls.append("capture"))
    monkeypatch.setattr(runner._prefilling, "_graphs", Graphs())
    monkeypatch.setattr(runner, "_uses_kernels", True)
    monkeypatch.setattr(runner._slots, "prepare", lambda rank: calls.append("prepare"))
    monkeypatch.setattr(runner, "check_verifying", lambda: calls.append("check"))
    runner.warm_up()

    assert (calls[0], set(calls[1:-1]), calls[-1]) == ("prepare", {"capture"}, "check")
