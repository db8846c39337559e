"""One batch: rows without gaps, chunked prefill, shared blocks."""

import pytest

from tests.worker.inference.fakes import make_base, make_sequence
from worker.inference.batching.model_batch import Capacity, ModelBatch, Move, Prefill
from worker.inference.batching.sequence import Sequence


def make_batch(*, rows: int = 4, prefill_tokens: int = 512) -> ModelBatch:
    capacity = Capacity(
        max_rows=rows, block_count=65, context_length=100, prefill_tokens_per_step=prefill_tokens
    )
    return ModelBatch(make_base(), capacity, adapter_slot_count=2)


def start(batch: ModelBatch, *prompt_lengths: int) -> list[Sequence]:
    sequences = [make_sequence(prompt_length=length) for length in prompt_lengths]
    for sequence in sequences:
        batch.start(sequence)
    return sequences


def test_last_row_moves_into_the_gap():
    batch = make_batch()
    sequences = [make_sequence() for _ in range(3)]
    for sequence in sequences:
        batch.start(sequence)

    assert batch.remove(sequences[0]) == Move(source=2, target=0)
    assert batch.running == [sequences[2], sequences[1]]
    assert [sequence.row for sequence in batch.running] == [0, 1]


def test_a_full_batch_starts_no_sequence():
    batch = make_batch(rows=1)

    assert batch.start(make_sequence()) is not None
    assert batch.start(make_sequence()) is None


def test_long_prompt_is_read_in_chunks_except_its_last_token():
    batch = make_batch(prefill_tokens=20)
    long, short = start(batch, 30, 5)

    assert batch.prefills() == [Prefill(long, 20)]
    long.prefilled_count = 20
    assert batch.prefills() == [Prefill(long, 9), Prefill(short, 4)]


def test_tokens_that_a_decode_step_would_read_count_against_those_of_a_step():
    batch = make_batch(prefill_tokens=20)
    _ready, long = start(batch, 1, 60)

    assert batch.prefills() == [Prefill(long, 19)]


def test_the_last_token_of_a_prompt_has_its_place_in_the_step():
    batch = make_batch(prefill_tokens=20)
    first, second = start(batch, 15, 6)

    # 14 tokens and the last one leave room for 5, but not for these and a last one.
    assert batch.prefills() == [Prefill(first, 14), Prefill(second, 4)]


@pytest.mark.parametrize("prefill_tokens", [1, 2, 6])
def test_many_rows_never_keep_prompts_from_being_read(prefill_tokens):
    batch = make_batch(rows=9, prefill_tokens=prefill_tokens)
    *_ready, late = start(batch, *[1] * 8, 2)

    assert batch.prefills() == [Prefill(late, 1)]


def test_what_was_read_is_shared_under_the_same_adapter_only():
    batch = make_batch(rows=9)
    text = list(range(40))
    first = make_sequence(token_ids=text, adapter="a")
    batch.start(first)
    first.prefilled_count = 39
    batch.commit(first)
    same, other = make_sequence(token_ids=text, adapter="a"), make_sequence(token_ids=text, adapter="b")
    batch.start(same)
    batch.start(other)

    assert (same.prefilled_count, other.prefilled_count) == (32, 0)
    assert same.blocks[:2] == first.blocks[:2]
    assert not set(same.blocks[2:]) & set(first.blocks)
