"""Settings at the ends of their ranges, and scores that are not finite."""

import pytest
import torch

from app.core.engine.sampling import MIN_LOGPROB, Sampling
from tests.worker.inference.sampling.samplers import VOCABULARY, draw, make_logits, make_sampler, words
from worker.inference.batching.sequence import NO_TOKEN

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
