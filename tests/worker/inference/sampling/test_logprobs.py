"""Log-probabilities of sampled tokens and of their alternatives."""

import pytest
import torch

from app.core.engine.sampling import Sampling
from tests.worker.inference.sampling.samplers import VOCABULARY, make_logits, make_sampler


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


def test_no_logprobs_are_computed_where_no_row_requests_them():
    assert make_sampler(Sampling()).sample(make_logits(), 0, torch.tensor([True])).logprobs is None
