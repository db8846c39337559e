"""Each row is sampled by its own settings and its own seed."""

import pytest
import torch

from app.core.engine.sampling import Sampling
from tests.worker.inference.sampling.samplers import VOCABULARY, draw, make_logits, make_sampler


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
