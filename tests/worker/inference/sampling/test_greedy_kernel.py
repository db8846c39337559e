"""What is sampled is the same whether plainly greedy tokens are chosen by a kernel or by PyTorch."""

import pytest
import torch

from app.core.engine.sampling import Sampling
from worker.inference.sampling.sampler import NO_TOKEN, Sampler

pytest.importorskip("worker.kernels.serving.greedy")

VOCABULARY = 40
GREEDY = Sampling(temperature=0)
OTHERS = {
    "as greedy": GREEDY,
    "drawn": Sampling(temperature=1, seed=3),
    "log-probabilities": Sampling(temperature=0, logprobs=3),
    "a biased token": Sampling(temperature=0, logit_bias={7: 50}),
    "repetition": Sampling(temperature=0, repetition_penalty=2),
    "frequency": Sampling(temperature=0, frequency_penalty=2),
}


def sample_thrice(logits_BV: torch.Tensor, other: Sampling, mask: torch.Tensor | None, uses_kernels: bool):
    """Three steps of a greedy row and another one; `mask`: the tokens that the other one may have."""
    device = logits_BV.device
    sampler = Sampler(max_rows=3, vocabulary_size=VOCABULARY, device=device, uses_kernels=uses_kernels)
    sampler.set_row(0, GREEDY, 0, (1, 2))
    sampler.set_row(1, other, 3, (1, 2))
    if mask is not None:
        sampler.set_mask(1, mask)
    active_B = torch.ones(2, dtype=torch.long, device=device)
    return [sampler.sample(logits_BV, 0, active_B).to_host() for _ in range(3)]


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("spoilt", [None, torch.nan, torch.inf])
def test_rows_beside_a_greedy_one_keep_their_settings(other, has_mask, spoilt):
    torch.manual_seed(0)
    logits_BV = torch.randn(2, VOCABULARY)
    logits_BV[1, [2, 7]] = 3.0
    if spoilt is not None:
        logits_BV[0, 5] = spoilt
    mask = torch.tensor([1 << 9 | 1 << 11, 0], dtype=torch.int32) if has_mask else None

    plain, by_kernel = (sample_thrice(logits_BV, other, mask, used) for used in (False, True))

    assert by_kernel == plain
    assert (plain[0][0].token_id == NO_TOKEN) == (spoilt is not None)
