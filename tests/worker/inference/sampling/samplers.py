"""Samplers on the CPU with a vocabulary of eleven tokens, and logits for them."""

import torch

from app.core.engine.sampling import Sampling
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


def words(*allowed: int) -> torch.Tensor:
    """A mask of one word."""
    return torch.tensor([sum(1 << token for token in allowed)], dtype=torch.int32)
