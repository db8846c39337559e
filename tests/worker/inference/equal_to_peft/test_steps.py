"""Answers equal PEFT's whichever way a step takes: read prompts, captured sizes, a step that fails."""

import random
from dataclasses import replace
from itertools import count, pairwise

import pytest
import torch

from tests.worker.inference.equal_to_peft.playing import as_sequence, new_engine, play
from tests.worker.inference.fakes import Mailbox
from worker.inference.model import runner as model_runner
from worker.inference.model.passes import prompt_reader
from worker.inference.model.passes.forward import ChunkTokens
from worker.inference.model.passes.prefill import SIZES


def test_a_step_that_reads_prompts_needs_no_decode_step(requests, adapters, runner, monkeypatch):
    """Not for their first tokens, nor for the next tokens of the others."""
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

    assert steps == []
    assert [one.token_ids for one in together] == [first.expected[:2], second.expected[:2]]
    assert last.token_ids == later.expected[:1]
    engine.step()
    assert steps == [3]


def test_rows_make_tokens_while_a_long_prompt_before_them_is_read(requests, adapters, runner, monkeypatch):
    monkeypatch.setattr(runner, "capacity", replace(runner.capacity, prefill_tokens_per_step=20))
    by_length = sorted(requests, key=lambda one: len(one.prompt_ids))
    short = [one for one in by_length if len(one.prompt_ids) < 10 and len(one.expected) > 9][:3]
    engine = new_engine(runner, Mailbox())
    first, *others = [as_sequence(one, adapters) for one in short]
    for sequence in (first, *others):
        engine.submit(sequence)
    engine.step()
    long = as_sequence(by_length[-1], adapters)
    engine.submit(long)
    engine.step()
    # The prompt that is read moves to the first row.
    engine.cancel(first)
    before = [len(one.token_ids) for one in others]
    engine.step()

    assert (long.row, long.is_prefilled) == (0, False)
    assert [len(one.token_ids) for one in others] == [count + 1 for count in before]
    for _ in range(60):
        engine.step()
    assert [one.token_ids for one in others] == [one.expected for one in short[1:]]
    assert long.token_ids == by_length[-1].expected


def test_a_prompt_is_read_alone_where_it_can_t_be_read_with_the_tokens_of_others(
    requests, adapters, runner, monkeypatch
):
    mine = [one for one in requests if len(one.prompt_ids) > 9 and len(one.expected) > 3]
    first, second = next((a, b) for a, b in pairwise(mine) if a.prompt_ids != b.prompt_ids)
    engine = new_engine(runner, Mailbox())
    running, late = as_sequence(first, adapters), as_sequence(second, adapters)
    engine.submit(running)
    engine.step()
    states, refused = runner._prefilling.states, []

    def refuse_both(chunks: list[ChunkTokens]) -> torch.Tensor:
        if len(chunks) > 1:
            refused.append(chunks)
            raise torch.OutOfMemoryError("none left")
        return states(chunks)

    monkeypatch.setattr(runner._prefilling, "states", refuse_both)
    engine.submit(late)
    for _ in range(40):
        engine.step()

    assert refused
    assert [one.token_ids for one in (running, late)] == [first.expected, second.expected]


def test_a_pass_leaves_long_rows_to_a_decode_step(requests, adapters, runner, monkeypatch):
    monkeypatch.setattr(prompt_reader, "_MAX_KEYS_OF_ROW", 5)
    read: list[int] = []
    states = runner._prefilling.states

    def read_and_count(chunks: list[ChunkTokens]) -> torch.Tensor:
        read.append(len(chunks))
        return states(chunks)

    monkeypatch.setattr(runner._prefilling, "states", read_and_count)
    mine = list({one.prompt_ids: one for one in requests if len(one.prompt_ids) > 9}.values())[:4]
    done = play(random.Random(0), runner, adapters, list(mine), arrivals=0.4)

    assert [sequence.token_ids for sequence in done] == [request.expected for request in done.values()]
    assert set(read) == {1}


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
