"""A mask of allowed tokens decides over every other setting of its row."""

import torch

from app.core.engine.sampling import Sampling
from tests.worker.inference.sampling.samplers import draw, make_logits, make_sampler, words
from worker.inference.sampling.sampler import Sampler


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
