"""Each row is sampled by its own settings and its own seed."""

import pytest
import torch

from app.core.messages import Sampling
from worker.inference.sampling import Sampler

VOCABULARY = 11


def make_sampler(*settings: Sampling, prompt_ids: tuple[int, ...] = ()) -> Sampler:
    sampler = Sampler(max_rows=8, vocabulary_size=VOCABULARY, device=torch.device("cpu"))
    for row, sampling in enumerate(settings):
        sampler.set_row(row, sampling, sampling.seed or 0, torch.tensor(prompt_ids, dtype=torch.long))
    return sampler


def draw(sampler: Sampler, logits: torch.Tensor, times: int = 1, first_row: int = 0) -> list[list[int]]:
    """Tokens by row."""
    active = torch.ones(len(logits), dtype=torch.bool)
    steps = [sampler.sample(logits, first_row, active).tolist() for _ in range(times)]
    return [list(row) for row in zip(*steps, strict=True)]


def make_logits(rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0))


def test_temperature_zero_is_greedy_beside_rows_that_are_not():
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
    other = Sampling(temperature=1.3, top_p=0.5, top_k=3, repetition_penalty=2, seed=1)

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


def test_moved_row_goes_on_with_its_own_noise():
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
