"""Sampled tokens on their way from the device to the host. B: rows of a step. K: likeliest tokens."""

import torch

from worker.inference.batching.sequence import SampledToken
from worker.inference.sampling.sampler import Logprobs, SampledBatch


class DeviceTokens:
    """The tokens of a step, copied to the host without waiting for the device."""

    def __init__(self, sampled: SampledBatch) -> None:
        self._arrived: torch.cuda.Event | None = None
        if sampled.tokens_B.is_cuda:
            sampled = _on_host(sampled)
            # Blocking: the waiting thread sleeps instead of spinning, so that other threads can run.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()
        self._sampled = sampled

    def to_host(self) -> list[SampledToken]:
        """The tokens by row. Waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._sampled.to_host()


def _on_host(sampled: SampledBatch) -> SampledBatch:
    """Start a copy to pinned memory on the host, complete once the stream reaches it."""
    logprobs = sampled.logprobs
    if logprobs is not None:
        logprobs = Logprobs(
            _copy(logprobs.chosen_B), _copy(logprobs.top_values_BK), _copy(logprobs.top_ids_BK)
        )
    return SampledBatch(_copy(sampled.tokens_B), logprobs, sampled.top_counts)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
