"""Tokens at several positions of a row are those of steps of one token, and change the same state."""

import random

import pytest
import torch

from app.core.engine.sampling import Sampling
from tests.worker.inference.sampling.samplers import VOCABULARY, make_sampler, words
from worker.inference.batching.sequence import NO_TOKEN
from worker.inference.sampling.drafted import DraftedPositions
from worker.inference.sampling.sampler import Sampler

SETTINGS = {
    "greedy": Sampling(temperature=0),
    "sampled": Sampling(temperature=0.9, seed=3),
    "filtered": Sampling(temperature=1.2, top_p=0.8, top_k=5, min_p=0.05, seed=4),
    "penalties": Sampling(temperature=0.7, presence_penalty=1.5, frequency_penalty=1.2, seed=5),
    "repetition": Sampling(temperature=0, repetition_penalty=1.8),
    "bias": Sampling(temperature=1, logit_bias={2: 4, 7: -100}, logprobs=2, seed=6),
}
CPU = torch.device("cpu")
PROMPT = (1, 4, 4)


def sample_row(sampler: Sampler, row: int, logits_V: torch.Tensor) -> tuple[int, object]:
    (token,) = sampler.sample(logits_V[None], row, torch.tensor([True])).to_host()
    return token.token_id, token.logprob


def sample_while_drafted(sampler, row, logits_WV, draft):
    """What steps of one token make at these positions: those up to the first that is not drafted."""
    made = []
    for offset, logits_V in enumerate(logits_WV):
        made.append(sample_row(sampler, row, logits_V))
        if offset >= len(draft) or made[-1][0] != draft[offset]:
            return made
    return made


def draft_for(sampler, row, logits_WV, rng, other_sampler):
    """The tokens that will be made, in half of all cases with another one among them."""
    tokens = [sample_row(other_sampler, row, logits_V)[0] for logits_V in logits_WV[:-1]]
    if tokens and rng.random() < 0.5:
        tokens[rng.randrange(len(tokens))] = rng.randrange(VOCABULARY)
    return tokens


@pytest.mark.parametrize("seed", range(30))
def test_verified_tokens_are_those_of_single_steps(seed):
    rng, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    settings = rng.choices(list(SETTINGS.values()), k=4)
    plain, verifying, ahead = (make_sampler(*settings, prompt_ids=PROMPT) for _ in range(3))
    for _ in range(3):
        rows = sorted(rng.sample(range(4), k=rng.randint(1, 4)))
        logits = {row: torch.randn(rng.randint(1, 5), VOCABULARY, generator=draw) * 2 for row in rows}
        drafts = {row: draft_for(verifying, row, logits[row], rng, ahead) for row in rows}
        expected = {row: sample_while_drafted(plain, row, logits[row], drafts[row]) for row in rows}
        # The sampler that has looked ahead is brought to the state of the others.
        ahead = make_sampler(*settings, prompt_ids=PROMPT)

        drafted = DraftedPositions(rows, [drafts[row] for row in rows], CPU)
        verified = verifying.verify(torch.cat([logits[row] for row in rows]), drafted, {})

        tokens, first = verified.sampled.to_host(), 0
        for index, row in enumerate(rows):
            made = expected[row]
            assert verified.accepted_B[index] == len(made) - 1
            assert verified.last_B[index] == made[-1][0]
            found = tokens[first : first + len(made)]
            assert [one.token_id for one in found] == [token for token, _ in made]
            for one, (_, logprob) in zip(found, made, strict=True):
                assert (one.logprob is None) == (logprob is None)
                if logprob is not None:
                    assert one.logprob.logprob == pytest.approx(logprob.logprob, abs=1e-5)
            first += len(drafts[row]) + 1
    last = torch.randn(4, VOCABULARY, generator=draw)
    assert [sample_row(plain, row, last[row])[0] for row in range(4)] == [
        sample_row(verifying, row, last[row])[0] for row in range(4)
    ]


def test_tokens_come_as_often_as_they_are_probable_whatever_was_drafted():
    count, draft = 4_000, [3, 3]
    sampler = Sampler(max_rows=count, vocabulary_size=VOCABULARY, device=CPU)
    draws = random.Random(0)
    for row in range(count):
        sampler.set_row(row, Sampling(temperature=0.8), draws.randrange(2**62), ())
    logits_WV = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1))
    # The drafted token is a likely one, so that many rows are accepted.
    logits_WV[:, 3] += 2

    drafted = DraftedPositions(range(count), [draft] * count, CPU)
    verified = sampler.verify(logits_WV.repeat(count, 1), drafted, {})

    tokens_BW = verified.sampled.tokens_B.view(count, 3)
    probabilities_WV = (logits_WV / 0.8).softmax(-1)
    for accepted in range(3):
        # Of the rows whose drafts were accepted so far, the next token.
        reached = verified.accepted_B >= accepted
        seen_V = torch.bincount(tokens_BW[reached, accepted], minlength=VOCABULARY)
        expected_V = probabilities_WV[accepted] * reached.sum()
        chi_squared = float(((seen_V - expected_V) ** 2 / expected_V).sum())
        # 29.6 is exceeded once in a thousand draws with ten degrees of freedom.
        assert chi_squared < 29.6
    assert 0.05 < float((verified.accepted_B == 2).float().mean()) < 0.9


def test_each_position_has_its_own_mask():
    sampler = make_sampler(Sampling(temperature=0), Sampling(temperature=0))
    logits = torch.zeros(4, VOCABULARY)
    logits[:, 9] = 1

    drafted = DraftedPositions([0, 1], [[2, 4], []], CPU)
    verified = sampler.verify(logits, drafted, {0: words(2), 1: words(4, 5), 2: words(6)})

    # The last one is of a row without a grammar.
    assert verified.sampled.tokens_B.tolist() == [2, 4, 6, 9]
    assert verified.accepted_B.tolist() == [2, 0]


def test_scores_that_are_not_finite_accept_nothing():
    sampler = make_sampler(Sampling(temperature=0))
    logits = torch.zeros(3, VOCABULARY)
    logits[0, 5] = 1
    logits[1] = torch.nan

    drafted = DraftedPositions([0], [[5, 0]], CPU)
    verified = sampler.verify(logits, drafted, {})

    assert verified.sampled.tokens_B[:2].tolist() == [5, NO_TOKEN]
    assert verified.accepted_B.tolist() == [1]
