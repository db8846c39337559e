"""Each row is sampled by its own settings and its own seed."""

import pytest
import torch

from app.core.engine.sampling import MIN_LOGPROB, Sampling
from worker.inference.batching.sequence import NO_TOKEN
from worker.inference.sampling.sampler import Sampler

VOCABULARY = 11


def make_sampler(*settings: Sampling, prompt_ids: tuple[int, ...] = ()) -> Sampler:
    sampler = Sampler(max_rows=8, vocabulary_size=VOCABULARY, device=torch.device("cpu"))
    for row, sampling in enumerate(settings):
        sampler.set_row(row, sampling, sampling.seed or 0, prompt_ids)
    return sampler


def draw(sampler: Sampler, logits: torch.Tensor, times: int = 1, first_row: int = 0) -> list[list[int]]:
    """Tokens by row."""
    active = torch.ones(len(logits), dtype=torch.bool)
    steps = [sampler.sample(logits, first_row, active).tokens_B.tolist() for _ in range(times)]
    return [list(row) for row in zip(*steps, strict=True)]


def make_logits(rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0))


def test_temperature_zero_is_greedy_in_a_mixed_batch():
    logits = make_logits(2)
    sampler = make_sampler(Sampling(temperature=0), Sampling(temperature=2, seed=1))

    greedy, _ = draw(sampler, logits, times=50)

    assert set(greedy) == {int(logits[0].argmax())}


def test_tokens_come_as_often_as_they_are_probable():
    logits = make_logits()
    sampler = make_sampler(Sampling(temperature=0.8, seed=5))

    (tokens,) = draw(sampler, logits, times=4000)

    counted = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY) / len(tokens)
    assert torch.allclose(counted, (logits[0] / 0.8).softmax(-1), atol=0.03)


def test_a_seed_gives_the_same_tokens_in_any_row_and_company():
    logits = make_logits()
    mine = Sampling(temperature=1, seed=9)
    other = Sampling(
        temperature=1.3,
        top_p=0.5,
        top_k=3,
        min_p=0.2,
        repetition_penalty=2,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={3: 5},
        logprobs=2,
        seed=1,
    )

    (alone,) = draw(make_sampler(mine), logits, times=20)
    in_company = draw(make_sampler(other, other, mine), logits.expand(3, -1), times=20)[2]

    assert alone == in_company


def test_seeds_differ():
    logits = make_logits()
    rows = [draw(make_sampler(Sampling(temperature=1, seed=seed)), logits, times=20) for seed in range(20)]

    assert len({tuple(row) for (row,) in rows}) == 20


def test_top_k_leaves_the_k_likeliest():
    logits = make_logits()

    (tokens,) = draw(make_sampler(Sampling(temperature=2, top_k=3, seed=0)), logits, times=300)

    assert set(tokens) == set(logits[0].topk(3).indices.tolist())


def test_top_p_leaves_the_likeliest_that_reach_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    (tokens,) = draw(make_sampler(Sampling(temperature=1, top_p=0.7, seed=0)), logits, times=300)

    assert set(tokens) == {0, 1}


def test_top_p_always_leaves_one():
    logits = make_logits()

    (tokens,) = draw(make_sampler(Sampling(temperature=1, top_p=1e-6, seed=0)), logits, times=20)

    assert set(tokens) == {int(logits.argmax())}


@pytest.mark.parametrize("score", [2.0, -0.5])
def test_repetition_penalty_counts_prompt_and_answer(score):
    logits = torch.full((1, VOCABULARY), score - 0.1)
    logits[0, 3] = score
    sampler = make_sampler(Sampling(temperature=0, repetition_penalty=1.5), prompt_ids=(3,))

    (tokens,) = draw(sampler, logits, times=3)

    assert tokens == [0, 1, 2]


def test_moved_row_goes_on_with_its_own_random_numbers():
    logits = make_logits()
    mine, other = Sampling(temperature=1, seed=9), Sampling(temperature=1, seed=1)
    (expected,) = draw(make_sampler(mine), logits, times=20)
    sampler = make_sampler(other, mine)

    start = draw(sampler, logits, times=10, first_row=1)[0]
    sampler.move(1, 0)

    assert start + draw(sampler, logits, times=10)[0] == expected


def test_rows_that_are_not_active_do_not_advance():
    logits = make_logits()
    mine = Sampling(temperature=1, seed=9)
    (expected,) = draw(make_sampler(mine), logits, times=5)
    sampler = make_sampler(mine)

    sampler.sample(logits, 0, torch.tensor([False]))

    assert draw(sampler, logits, times=5)[0] == expected


def test_min_p_leaves_what_is_as_probable_as_that_share_of_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    (tokens,) = draw(make_sampler(Sampling(temperature=1, min_p=0.5, seed=0)), logits, times=300)

    assert set(tokens) == {0, 1}


def test_min_p_looks_at_the_distribution_that_temperature_has_flattened():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    (tokens,) = draw(make_sampler(Sampling(temperature=2, min_p=0.5, seed=0)), logits, times=300)

    assert set(tokens) == {0, 1, 2}


def test_presence_and_frequency_penalties_follow_the_formula_of_openai():
    logits = make_logits()
    settings = Sampling(temperature=0, presence_penalty=0.7, frequency_penalty=0.4)

    (tokens,) = draw(make_sampler(settings, prompt_ids=(0, 1, 2)), logits, times=30)

    counts, expected = torch.zeros(VOCABULARY), []
    for _ in range(30):
        expected.append(int((logits[0] - 0.7 * (counts > 0) - 0.4 * counts).argmax()))
        counts[expected[-1]] += 1
    assert tokens == expected


def test_a_reused_row_begins_without_counts():
    logits = make_logits()
    settings = Sampling(temperature=0, frequency_penalty=2, repetition_penalty=1.5)
    (expected,) = draw(make_sampler(settings), logits, times=9)
    sampler = make_sampler(settings)
    draw(sampler, logits, times=5)

    sampler.set_row(0, settings, 0, ())

    assert draw(sampler, logits, times=9) == [expected]


def test_a_reused_row_without_settings_is_not_processed():
    logits = make_logits(2)
    asking = Sampling(temperature=0, presence_penalty=2, logit_bias={4: 100}, repetition_penalty=9)
    sampler = make_sampler(asking, asking)
    draw(sampler, logits, times=3)
    sampler.set_row(0, Sampling(temperature=0), 0, (1, 2))

    assert draw(sampler, logits, times=5)[0] == [int(logits[0].argmax())] * 5


def test_counts_move_with_their_row():
    logits = make_logits()
    mine = Sampling(temperature=0, frequency_penalty=0.5, logit_bias={2: 0.5})
    (expected,) = draw(make_sampler(mine), logits, times=20)
    sampler = make_sampler(Sampling(temperature=0), mine)

    start = draw(sampler, logits, times=10, first_row=1)[0]
    sampler.move(1, 0)

    assert start + draw(sampler, logits, times=10)[0] == expected


def test_bias_makes_tokens_certain_or_impossible_in_its_row_alone():
    logits = torch.zeros(2, VOCABULARY)
    biased = Sampling(temperature=1, logit_bias={3: 100, 4: -100, 999: 100}, seed=0)

    mine, other = draw(make_sampler(biased, Sampling(temperature=1, seed=0)), logits, times=60)

    assert set(mine) == {3}
    assert len(set(other)) > 5


def words(*allowed: int) -> torch.Tensor:
    """A mask of one word."""
    return torch.tensor([sum(1 << token for token in allowed)], dtype=torch.int32)


def test_a_mask_holds_whatever_the_other_processors_do():
    logits = make_logits(2)
    sampler = make_sampler(
        Sampling(temperature=2, logit_bias={1: 100}, seed=0), Sampling(temperature=2, seed=1)
    )
    sampler.set_mask(0, words(2, 5))

    masked, free = draw(sampler, logits, times=200)

    assert set(masked) == {2, 5}
    assert len(set(free)) > 5


def test_a_mask_of_more_words_than_one_is_read_by_token_id():
    sampler = Sampler(max_rows=1, vocabulary_size=70, device=torch.device("cpu"))
    sampler.set_row(0, Sampling(temperature=0), 0, ())
    sampler.set_mask(0, torch.tensor([0, -(2**31), 1], dtype=torch.int32))
    logits = torch.zeros(1, 70)
    logits[0, 64] = 1

    assert draw(sampler, logits) == [[64]]
    sampler.set_mask(0, torch.tensor([0, -(2**31)], dtype=torch.int32))
    assert draw(sampler, logits) == [[63]]


def test_a_mask_ends_with_its_sequence_and_moves_with_it():
    logits = make_logits(2)
    sampler = make_sampler(Sampling(temperature=0), Sampling(temperature=0))
    sampler.set_mask(1, words(7))
    sampler.move(1, 0)
    assert draw(sampler, logits[:1]) == [[7]]

    sampler.set_row(0, Sampling(temperature=0), 0, ())

    assert draw(sampler, logits[:1]) == [[int(logits[0].argmax())]]


def test_logprobs_are_those_of_the_model_before_any_processor():
    logits = make_logits(2)
    asking = Sampling(temperature=1.7, logit_bias={3: 100}, repetition_penalty=2, logprobs=4)
    sampled = make_sampler(asking, Sampling(temperature=0)).sample(logits, 0, torch.tensor([True, True]))

    mine, other = sampled.to_host()

    expected = logits[0].log_softmax(-1)
    assert (mine.token_id, other.logprob) == (3, None)
    assert mine.logprob.logprob == pytest.approx(float(expected[3]), abs=1e-5)
    assert [token for token, _ in mine.logprob.top] == expected.topk(4).indices.tolist()
    assert [value for _, value in mine.logprob.top] == pytest.approx(
        expected.topk(4).values.tolist(), abs=1e-5
    )


def test_each_row_gets_as_many_alternatives_as_it_requests():
    sampler = make_sampler(*(Sampling(temperature=0, logprobs=count) for count in (0, 2, 20, None)))

    made = sampler.sample(make_logits(4), 0, torch.ones(4, dtype=torch.bool)).to_host()

    assert [one.logprob and len(one.logprob.top) for one in made] == [0, 2, VOCABULARY, None]


EDGES = {
    "a temperature that no float32 divides by": Sampling(temperature=1e-45, seed=1),
    "a temperature at the end of float32": Sampling(temperature=1.2e-38, seed=1),
    "the lowest temperature": Sampling(temperature=1e-5, seed=1),
    "the lowest repetition penalty": Sampling(temperature=1, repetition_penalty=0.01, seed=1),
    "the highest repetition penalty": Sampling(temperature=2, repetition_penalty=10, seed=1),
    "the lowest top-p": Sampling(temperature=2, top_p=5e-324, seed=1),
    "the lowest min-p": Sampling(temperature=2, min_p=5e-324, seed=1),
    "the highest min-p": Sampling(temperature=2, min_p=1, seed=1),
    "the highest top-k": Sampling(temperature=2, top_k=2**63 - 1, seed=2**63 - 1),
    "bias": Sampling(temperature=1e-5, logit_bias={1: 100, 2: -100, 10**30: 100}, seed=1),
    "penalties": Sampling(temperature=2, presence_penalty=-2, frequency_penalty=2, seed=1),
    "all": Sampling(
        temperature=1e-5,
        top_p=5e-324,
        top_k=1,
        min_p=1,
        repetition_penalty=0.01,
        presence_penalty=2,
        frequency_penalty=-2,
        logit_bias=dict.fromkeys(range(VOCABULARY), -100),
        logprobs=20,
        seed=1,
    ),
}


@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_every_setting_that_is_let_in_draws_a_token(edge, scale):
    logits = make_logits(3) * scale
    mine = Sampling(temperature=1, seed=9)
    (expected,) = draw(make_sampler(mine), logits[:1], times=20)

    alone, others = draw(make_sampler(mine, edge, prompt_ids=(0, 1, 2)), logits[:2], times=20)

    assert alone == expected
    assert all(0 <= token < VOCABULARY for token in others)


def test_below_the_lowest_temperature_the_likeliest_token_is_chosen():
    logits = make_logits()

    (tokens,) = draw(make_sampler(Sampling(temperature=9e-6, top_k=5, seed=0)), logits, times=9)

    assert set(tokens) == {int(logits.argmax())}


UNSOUND = {
    "one is no number": lambda row: row.index_fill_(0, torch.tensor([4]), torch.nan),
    "one is infinite": lambda row: row.index_fill_(0, torch.tensor([4]), torch.inf),
    "all are no numbers": lambda row: row.fill_(torch.nan),
    "none is possible": lambda row: row.fill_(-torch.inf),
}


@pytest.mark.parametrize("spoil", UNSOUND.values(), ids=UNSOUND)
@pytest.mark.parametrize("temperature", [0, 1])
def test_scores_that_are_not_finite_give_no_token_in_their_row_alone(spoil, temperature):
    logits = make_logits(2)
    asking = {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "top_p": 0.9, "logprobs": 2}
    mine = Sampling(temperature=1, seed=9, **asking)
    (expected,) = draw(make_sampler(mine), logits[:1], times=20)
    spoil(logits[1])

    alone, spoilt = draw(make_sampler(mine, Sampling(temperature=temperature, **asking)), logits, times=20)

    assert alone == expected
    assert set(spoilt) == {NO_TOKEN}


@pytest.mark.parametrize("spoilt", [torch.inf, torch.nan])
def test_logprobs_of_scores_that_are_not_finite_are_not_made_up_behind_a_mask(spoilt):
    logits = make_logits(2)
    logits[:, 4] = spoilt
    sampler = make_sampler(Sampling(temperature=0, logprobs=2), Sampling(temperature=0))
    for row in (0, 1):
        sampler.set_mask(row, words(2, 5))

    asking, other = sampler.sample(logits, 0, torch.tensor([True, True])).to_host()

    assert (asking.token_id, other.token_id in (2, 5)) == (NO_TOKEN, True)


def test_logprobs_of_what_is_impossible_are_finite():
    logits = make_logits()
    logits[0, 4] = -torch.inf

    (made,) = (
        make_sampler(Sampling(temperature=0, logprobs=20)).sample(logits, 0, torch.tensor([True])).to_host()
    )

    assert made.logprob.top[-1] == (4, MIN_LOGPROB)


def test_tokens_of_the_prompt_that_the_output_layer_lacks_are_not_penalized():
    sampler = make_sampler(Sampling(temperature=0, repetition_penalty=2), prompt_ids=(1, VOCABULARY + 5))

    ((token,),) = draw(sampler, make_logits())

    assert 0 <= token < VOCABULARY


def test_no_logprobs_are_computed_where_no_row_requests_them():
    assert make_sampler(Sampling()).sample(make_logits(), 0, torch.tensor([True])).logprobs is None
