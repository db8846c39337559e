"""Sequences on the general path stream, end, fail and leave as on the paged one, each for itself."""

import itertools
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from app.core.engine.messages import Failed, Finished, TokenDelta
from app.core.errors.jobs import OutOfMemory
from tests.worker.inference.conftest import peft_warnings_ignored
from tests.worker.inference.general.conftest import (
    Bench,
    generate_with_peft,
    make_bench,
    make_model,
    make_sequence,
    save_adapter,
)
from worker.inference.adapters.cache import StoredAdapter, read_adapter
from worker.inference.batching.sequence import Sequence
from worker.inference.general.adapters import put_on
from worker.inference.general.generation import TextSteps

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def model():
    return make_model("Llama")


@pytest.fixture
def bench(model) -> Bench:
    return make_bench(model)


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory) -> list[StoredAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    with peft_warnings_ignored():
        folders = [save_adapter(model, folder / f"{seed}", seed=seed, use_dora=True) for seed in range(3)]
    return [read_adapter(folder.name, folder) for folder in folders]


@pytest.fixture(autouse=True)
def _peft_warnings():
    with peft_warnings_ignored():
        yield


def test_text_is_streamed_token_by_token(bench):
    sequence = make_sequence(PROMPT, count=6)
    bench.engine.submit(sequence)
    seen = []
    while not bench.mail.has_ended(sequence):
        bench.engine.step()
        seen.append(len(bench.mail.replies.get(sequence, [])))

    # A step loads the base model; the last reply is the end.
    assert [after - before for before, after in zip([0, *seen], seen, strict=False)][-6:] == [
        1,
        1,
        1,
        1,
        1,
        2,
    ]
    assert isinstance(bench.mail.end(sequence), Finished)


def test_a_stop_text_ends_the_answer(bench, model):
    text = "".join(chr(ord("0") + one) for one in generate_with_peft(model, None, PROMPT, 10))
    sequence = make_sequence(PROMPT, stop=[text[3:5]])

    bench.run(sequence)

    assert bench.mail.text(sequence) == text[: text.index(text[3:5])]


def test_a_seed_gives_the_same_text_alone_and_in_company(bench, adapters):
    settings = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "count": 20}

    def answer(*company):
        sequence = make_sequence(PROMPT, adapters[0], **settings)
        bench.run(sequence, *company)
        return sequence.token_ids

    alone = answer()
    assert alone == answer(make_sequence([9, 8], temperature=1.5), make_sequence([4], adapters[1]))
    assert alone != generate_with_peft(bench.runner._models[0], adapters[0].folder, PROMPT, 20)


class Alternating:
    """A grammar of the tokens 10 and 11 in turn."""

    def __init__(self) -> None:
        self.next = 10

    def start(self) -> "Alternating":
        return Alternating()

    def allowed_tokens(self) -> np.ndarray:
        return np.array([1 << self.next, 0], dtype=np.int32)

    def accept_token(self, token_id: int) -> None:
        self.next = 21 - token_id


def test_an_answer_keeps_to_its_grammar_and_leaves_others_free(bench, adapters):
    bound, free = make_sequence(PROMPT, adapters[0], count=6), make_sequence(PROMPT, adapters[0], count=6)
    bound = Sequence(replace(bound.prompt, grammar=Alternating()))

    bench.run(bound, free)

    assert bound.token_ids == [10, 11] * 3
    assert free.token_ids == generate_with_peft(bench.runner._models[0], adapters[0].folder, PROMPT, 6)


def test_logprobs_are_those_of_the_model(bench, model):
    sequence = make_sequence(PROMPT, count=1, logprobs=2)
    sequence = Sequence(replace(sequence.prompt, token_bytes=lambda token_id: bytes([token_id])))

    bench.run(sequence)

    expected = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1).topk(2)
    delta = bench.mail.replies[sequence][0]
    assert isinstance(delta, TokenDelta)
    assert [one.token_id for one in delta.tokens[0].top] == expected.indices.tolist()
    assert [one.logprob for one in delta.tokens[0].top] == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_a_cancelled_answer_frees_its_cache_and_its_turn(bench):
    first, second = make_sequence(PROMPT, count=100), make_sequence([9], count=4)
    bench.engine.submit(first)
    bench.engine.submit(second)
    while not first.token_ids:
        bench.engine.step()

    bench.engine.cancel(first)
    bench.run()
    while not bench.mail.has_ended(second):
        bench.engine.step()

    assert len(first.token_ids) <= 2
    assert bench.engine.running_count == 0
    assert not bench.runner._rows


def test_waiting_requests_are_counted_and_take_their_turn(model, adapters):
    bench = make_bench(model, max_rows=1)
    sequences = [make_sequence([one], adapters[0], count=4) for one in (3, 4, 5)]
    for sequence in sequences:
        bench.engine.submit(sequence)
    bench.run()
    while bench.engine.running_count == 0:
        bench.engine.step()
    assert [one.count for one in bench.engine.state.waiting] == [2]

    while not all(map(bench.mail.has_ended, sequences)):
        bench.engine.step()
    folder = adapters[0].folder
    assert [one.token_ids for one in sequences] == [
        generate_with_peft(model, folder, [token], 4) for token in (3, 4, 5)
    ]


def test_more_adapters_than_slots_take_turns_and_the_coldest_is_unloaded(model, adapters):
    bench = make_bench(model, slots=2)
    sequences = [make_sequence(PROMPT, adapter) for adapter in (*adapters, adapters[0])]

    bench.run(*sequences)

    assert [one.token_ids for one in sequences] == [
        generate_with_peft(model, adapter.folder, PROMPT, 10) for adapter in (*adapters, adapters[0])
    ]
    assert len(bench.runner._models) == 3


def test_an_idle_adapter_is_unloaded_where_memory_for_another_is_short(bench, adapters, monkeypatch):
    def put_on_where_two_fit(*arguments: object) -> PreTrainedModel:
        if len(loaded := [one for one in copies if one() is not None]) == 2:
            raise OutOfMemory("The machine has no memory left for this request.")
        copies[:] = loaded
        copies.append(weakref.ref(copy := put_on(*arguments)))
        return copy

    copies: list[weakref.ref[PreTrainedModel]] = []
    monkeypatch.setattr("worker.inference.general.runner.put_on", put_on_where_two_fit)
    sequences = [make_sequence(PROMPT, adapter) for adapter in (*adapters, adapters[0])]
    for sequence in sequences:
        bench.run(sequence)

    assert [one.token_ids for one in sequences] == [
        generate_with_peft(bench.runner._models[0], adapter.folder, PROMPT, 10)
        for adapter in (*adapters, adapters[0])
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "PEFT can't put the adapter on this base model"),
        ({"r": 900_000}, "says rank 900000; some of its weights have 4"),
    ],
)
def test_an_adapter_that_does_not_fit_fails_its_requests_alone(
    bench, adapters, tmp_path: Path, changes: dict[str, object], words: str
):
    folder = save_adapter(make_model("Falcon"), tmp_path / "other", use_dora=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    wrong, right = make_sequence(PROMPT, read_adapter("w", folder)), make_sequence(PROMPT, adapters[0])

    bench.run(wrong, right)

    failed = bench.mail.end(wrong)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == ("invalid", "adapter_unsupported")
    assert words in failed.message
    assert right.token_ids == generate_with_peft(bench.runner._models[0], adapters[0].folder, PROMPT, 10)


def test_an_error_in_one_answer_is_its_own(bench, adapters, monkeypatch):
    lucky, unlucky, third = (make_sequence([one], adapters[0], count=8) for one in (3, 4, 5))
    logits = TextSteps._logits

    def fail_for_four(steps: TextSteps, outputs: object) -> torch.Tensor:
        if steps._ids_1L[0, 0] == 4 and steps._ids_1L.shape[1] >= 4:
            raise RuntimeError("this one can't be computed")
        return logits(steps, outputs)

    monkeypatch.setattr(TextSteps, "_logits", fail_for_four)
    bench.run(lucky, unlucky, third)

    assert isinstance(bench.mail.end(unlucky), Failed)
    model = bench.runner._models[0]
    for one in (lucky, third):
        assert one.token_ids == generate_with_peft(model, adapters[0].folder, one.prompt.token_ids, 8)


@pytest.mark.parametrize("failing_pass", [2, 8, 9])
@pytest.mark.parametrize("family", ["Llama", "Mamba"])
def test_a_text_is_right_after_memory_was_short_between_two_layers(family: str, failing_pass: int):
    model = make_model(family)
    expected = [generate_with_peft(model, None, [one, 7], 10) for one in (3, 4)]
    bench = make_bench(model)
    sequences = [make_sequence([one, 7], count=10, logprobs=0) for one in (3, 4)]
    sequences = [Sequence(replace(one.prompt, token_bytes=lambda token: bytes([token]))) for one in sequences]
    passes = itertools.count(1)

    def fail_once(*_: object) -> None:
        if next(passes) == failing_pass:
            raise RuntimeError("can't allocate memory")

    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    layers[1].register_forward_pre_hook(fail_once)
    bench.run(*sequences)

    assert next(passes) > failing_pass
    assert [one.token_ids for one in sequences] == expected
    for one in sequences:
        assert logprobs_made(bench, one) == pytest.approx(logprobs_of(model, one), abs=1e-4)


def logprobs_made(bench: Bench, sequence: Sequence) -> list[float]:
    deltas = [reply for reply in bench.mail.replies[sequence] if isinstance(reply, TokenDelta)]
    return [token.logprob for delta in deltas for token in delta.tokens or []]


def logprobs_of(model: PreTrainedModel, sequence: Sequence) -> list[float]:
    """The log-probabilities of the made tokens where the whole text is read at once."""
    prompt_ids = sequence.prompt.token_ids
    with torch.no_grad():
        logits_LV = model(torch.tensor([[*prompt_ids, *sequence.token_ids]])).logits[0]
    made_LV = logits_LV[len(prompt_ids) - 1 : -1].log_softmax(-1)
    return made_LV.gather(1, torch.tensor(sequence.token_ids)[:, None])[:, 0].tolist()
