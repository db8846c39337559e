"""Sampling does not wait for the device, and gives the same tokens as on a CPU."""

import pytest
import torch

from app.core.engine.sampling import Sampling
from worker.inference.sampling.sampler import Sampler

VOCABULARY = 1000
SETTINGS = (
    Sampling(temperature=0),
    Sampling(temperature=0, repetition_penalty=1.3, logit_bias={5: 3.0}),
    Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.5, logprobs=3),
    Sampling(temperature=1, top_p=0.9, top_k=50, min_p=0.01, seed=3),
)


def make_sampler(device: torch.device, settings=SETTINGS) -> Sampler:
    sampler = Sampler(max_rows=len(settings), vocabulary_size=VOCABULARY, device=device)
    for row, sampling in enumerate(settings):
        sampler.set_row(row, sampling, sampling.seed or 0, (1, 2, 3))
    return sampler


@pytest.mark.parametrize("settings", [SETTINGS[:1], SETTINGS], ids=["greedy", "everything"])
def test_a_step_is_sampled_without_waiting_for_the_device(settings):
    cuda = torch.device("cuda")
    sampler = make_sampler(cuda, settings)
    logits = torch.randn(len(settings), VOCABULARY, device=cuda)
    active = torch.ones(len(settings), dtype=torch.bool, device=cuda)
    sampler.sample(logits, 0, active)  # compiles and allocates
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)
    busy.record()

    sampler.sample(logits, 0, active)

    assert not busy.query()


def test_greedy_rows_choose_what_they_choose_on_a_cpu():
    logits = torch.randn(len(SETTINGS), VOCABULARY, generator=torch.Generator().manual_seed(0))
    made = {}
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        sampler = make_sampler(device)
        active = torch.ones(len(SETTINGS), dtype=torch.bool, device=device)
        made[name] = [sampler.sample(logits.to(device), 0, active).to_host() for _ in range(20)]

    for on_cpu, on_gpu in zip(made["cpu"], made["cuda"], strict=True):
        assert [one.token_id for one in on_cpu[:3]] == [one.token_id for one in on_gpu[:3]]
        assert on_cpu[2].logprob.logprob == pytest.approx(on_gpu[2].logprob.logprob, abs=1e-4)
