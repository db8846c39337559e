"""When an answer ends, and its usage and timings."""

from dataclasses import replace

from tests.worker.inference.fakes import END, make_sequence
from worker.inference.batching.prompt_scores import ScoredToken
from worker.inference.batching.sequence import SampledToken, Sequence


def text_of(sequence, token_ids):
    deltas = [delta for token_id in token_ids for delta in sequence.add_token(SampledToken(token_id))]
    return "".join(delta.text for delta in deltas)


def test_end_token_ends_the_answer_and_has_no_text():
    sequence = make_sequence(max_new_tokens=9)

    assert text_of(sequence, [1, 2, END]) == "ab"
    assert sequence.finish_reason == "stop"


def test_max_new_tokens_end_with_length():
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
        "path": "paged",
        "path_reason": None,
    }


def make_counted(*, decode=None, **options):
    """A sequence with log-probabilities. Each token's only byte is its id."""
    sequence = make_sequence(**options)
    changes = {"decode": decode} if decode else {}
    return Sequence(replace(sequence.prompt, token_bytes=lambda token_id: bytes([token_id]), **changes))


def pieces_of(sequence, token_ids):
    """Text and token ids of all deltas."""
    tokens = [SampledToken(token_id, ScoredToken(-0.5)) for token_id in token_ids]
    deltas = [delta for token in tokens for delta in sequence.add_token(token)]
    return [(delta.text, [token.token_id for token in delta.tokens or []]) for delta in deltas]


def test_logprobs_go_out_with_the_text_of_their_tokens():
    sequence = make_counted(max_new_tokens=9, stop=["bcd"])

    assert pieces_of(sequence, [1, 2, 3, 1, END]) == [("a", [1]), ("bca", [2, 3, 1])]


def test_logprobs_of_a_stop_string_do_not_go_out():
    sequence = make_counted(max_new_tokens=9, stop=["cd"])

    assert pieces_of(sequence, [2, 3, 4]) == [("b", [2])]


def test_logprobs_of_a_spread_character_come_with_it():
    sequence = make_counted(max_new_tokens=9, decode=lambda ids: bytes(ids).decode(errors="replace"))

    assert pieces_of(sequence, "aé".encode()) == [("a", [97]), ("é", [195, 169])]


def test_tokens_without_text_are_sent_at_the_end():
    sequence = make_counted(max_new_tokens=2, decode=lambda ids: "")

    assert pieces_of(sequence, [1, 2]) == [("", [1, 2])]


def test_alternatives_come_with_their_bytes():
    sequence = make_counted()

    (delta,) = sequence.add_token(SampledToken(1, ScoredToken(-2.0, top=((3, -0.5), (1, -2.0)))))

    (token,) = delta.tokens
    assert (token.bytes, token.logprob) == ([1], -2.0)
    assert [(other.token_id, other.bytes, other.logprob) for other in token.top] == [
        (3, [3], -0.5),
        (1, [1], -2.0),
    ]


class ScriptedMatcher:
    """Returns the given masks in turn, and records the accepted tokens."""

    def __init__(self, *allowed):
        self._allowed = list(allowed)
        self.accepted = []

    def start(self):
        return self

    def allowed_tokens(self):
        return self._allowed[len(self.accepted)]

    def accept_token(self, token_id):
        self.accepted.append(token_id)


def test_a_grammar_follows_the_answer():
    matcher = ScriptedMatcher("first", "second")
    sequence = Sequence(replace(make_sequence().prompt, grammar=matcher))

    before = sequence.allowed_tokens()
    sequence.add_token(SampledToken(1))

    assert (before, sequence.allowed_tokens()) == ("first", "second")
    assert matcher.accepted == [1]
    assert sequence.needs_host


def test_without_a_grammar_nothing_waits_for_the_host():
    sequence = make_sequence()

    assert sequence.allowed_tokens() is None
    assert not sequence.needs_host
