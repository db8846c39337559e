"""One batch: rows without gaps, prompts in pieces, pages that are shared."""

from tests.worker.inference.fakes import make_base, make_sequence
from worker.inference.batching.model_batch import Capacity, Lane, Move, Prefill


def make_lane(*, rows: int = 4, prefill_tokens: int = 512) -> Lane:
    capacity = Capacity(
        max_rows=rows, page_count=65, context_length=100, prefill_tokens_per_step=prefill_tokens
    )
    return Lane(make_base(), capacity, adapter_slot_count=2)


def test_last_row_moves_into_the_gap():
    lane = make_lane()
    sequences = [make_sequence() for _ in range(3)]
    for sequence in sequences:
        lane.start(sequence)

    assert lane.remove(sequences[0]) == Move(source=2, target=0)
    assert lane.running == [sequences[2], sequences[1]]
    assert [sequence.row for sequence in lane.running] == [0, 1]


def test_a_full_lane_starts_nobody():
    lane = make_lane(rows=1)

    assert lane.start(make_sequence()) is not None
    assert lane.start(make_sequence()) is None


def test_long_prompt_is_read_in_pieces_and_its_last_token_is_left():
    lane = make_lane(prefill_tokens=20)
    long, short = make_sequence(prompt_length=30), make_sequence(prompt_length=5)
    lane.start(long)
    lane.start(short)

    assert lane.prefills() == [Prefill(long, 20)]
    long.prefilled_count = 20
    assert lane.prefills() == [Prefill(long, 9), Prefill(short, 4)]


def test_what_was_read_is_shared_under_the_same_adapter_only():
    lane = make_lane(rows=9)
    text = list(range(40))
    first = make_sequence(token_ids=text, adapter="a")
    lane.start(first)
    first.prefilled_count = 39
    lane.learn(first)
    same, other = make_sequence(token_ids=text, adapter="a"), make_sequence(token_ids=text, adapter="b")
    lane.start(same)
    lane.start(other)

    assert (same.prefilled_count, other.prefilled_count) == (32, 0)
    assert same.pages[:2] == first.pages[:2]
    assert not set(same.pages[2:]) & set(first.pages)
