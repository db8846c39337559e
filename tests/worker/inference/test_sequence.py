"""When an answer ends, and what it then says of itself."""

from dataclasses import replace

from tests.worker.inference.fakes import END, make_sequence
from worker.inference.sequence import Sequence


def text_of(sequence, token_ids):
    return "".join(sequence.add_token(token_id) for token_id in token_ids)


def test_end_token_ends_and_is_no_text():
    sequence = make_sequence(max_new_tokens=9)

    assert text_of(sequence, [1, 2, END]) == "ab"
    assert sequence.finish_reason == "stop"


def test_most_tokens_end_with_length():
    sequence = make_sequence(max_new_tokens=2)

    assert text_of(sequence, [1, 2]) == "ab"
    assert sequence.finish_reason == "length"


def test_stop_string_over_several_tokens_ends_and_does_not_leak():
    sequence = make_sequence(max_new_tokens=9, stop=["bcd"])

    assert text_of(sequence, [1, 2, 3, 4]) == "a"
    assert sequence.finish_reason == "stop"


def test_beginning_of_a_stop_string_goes_out_when_the_answer_ends_there():
    sequence = make_sequence(max_new_tokens=9, stop=["bcd"])

    assert text_of(sequence, [1, 2, 3, END]) == "abc"


def test_context_ends_an_answer_that_wanted_more():
    sequence = make_sequence(prompt_length=3, max_new_tokens=9)
    sequence.length_limit = 5

    text_of(sequence, [1, 1])

    assert sequence.finish_reason == "length"


def test_timings_count_from_the_request():
    times = iter([10.0, 11.0, 14.0])
    prompt = replace(make_sequence(max_new_tokens=2).prompt, received_at=7.0)
    sequence = Sequence(prompt, clock=lambda: next(times))
    sequence.start()
    text_of(sequence, [1, 1])

    finished = sequence.finished()

    assert finished.usage.completion_tokens == 2
    assert finished.timings.model_dump() == {
        "queued_seconds": 3.0,
        "first_token_seconds": 1.0,
        "total_seconds": 7.0,
        "tokens_per_second": 0.5,
    }
