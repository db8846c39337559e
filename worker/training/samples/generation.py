"""Greedy answers of a model in training, by transformers' `generate`, with the job's optimizations in place.

B: prompts generated at the same time. L: tokens of the longest of them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from worker.decoder.random_state import RandomState
from worker.planning.sample_answers import MAX_SECONDS
from worker.training.trainer import AdapterTrainer


@dataclass(frozen=True)
class AnswerLimits:
    """What ends an answer. `is_stopped`: whether the worker has requested a stop."""

    max_new_tokens: int
    end_ids: frozenset[int]
    is_stopped: Callable[[], bool]


@dataclass(frozen=True)
class Generated:
    """The new tokens of an answer, its end token included; without one, it was cut."""

    token_ids: list[int]
    is_cut: bool


class SampleGenerator:
    """Generates with the trainer's model. The model's attention must be that of unpacked rows when made."""

    def __init__(self, trainer: AdapterTrainer, limits: AnswerLimits) -> None:
        self._trainer = trainer
        self._limits = limits
        self._attention = self._base.config._attn_implementation

    @property
    def _base(self) -> PreTrainedModel:
        base: PreTrainedModel = self._trainer.model.get_base_model()
        return base

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_seconds: float = MAX_SECONDS
    ) -> list[Generated] | None:
        """An answer to each prompt, cut after `max_seconds`. Returns None where a stop was requested.

        Weights, random state and mode of the model are as before. Raises what the model may raise.
        """
        with self.evaluation_mode():
            answers = self._generate(prompts, max_seconds)
        return None if self._limits.is_stopped() else answers

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Within this context the model has no dropout, plain attention and the settings of `generate`.

        Mode, attention, settings and random state are restored.
        """
        model, base = self._trainer.model, self._base
        was_training, settings, attention = (
            model.training,
            base.generation_config,
            base.config._attn_implementation,
        )
        random = RandomState()
        try:
            model.eval()
            if attention != self._attention:  # that of padding-free batches has no cache
                base.set_attn_implementation(self._attention)
            base.generation_config = self._settings()
            with self._trainer.accelerator.autocast():
                yield
        finally:
            base.generation_config = settings
            if attention != self._attention:
                base.set_attn_implementation(attention)
            model.train(was_training)
            random.restore()

    def _settings(self) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=self._limits.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            eos_token_id=sorted(self._limits.end_ids) or None,
            disable_compile=True,
        )

    def _generate(self, prompts: Sequence[Sequence[int]], max_seconds: float) -> list[Generated]:
        device, longest = self._base.device, max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids_BL = torch.tensor(
            [[0] * count + list(prompt) for count, prompt in zip(padding, prompts, strict=True)],
            device=device,
        )
        mask_BL = torch.tensor([[0] * count + [1] * (longest - count) for count in padding], device=device)
        ends = StoppingCriteriaList([_StopOrTimeout(self._limits.is_stopped, max_seconds)])
        output: Any = self._base.generate(ids_BL, attention_mask=mask_BL, stopping_criteria=ends)  # type: ignore[operator]
        return [self._cut(row[longest:]) for row in output.tolist()]

    def _cut(self, token_ids: list[int]) -> Generated:
        """The tokens up to the end token: shorter answers of a batch are filled up."""
        end = next((place for place, one in enumerate(token_ids) if one in self._limits.end_ids), None)
        return Generated(token_ids if end is None else token_ids[: end + 1], end is None)


class _StopOrTimeout(StoppingCriteria):
    """Ends all answers at a stop that was requested, or after `max_seconds`."""

    def __init__(self, is_stopped: Callable[[], bool], max_seconds: float) -> None:
        self._is_stopped = is_stopped
        self._ends_at = time.monotonic() + max_seconds

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        is_over = self._is_stopped() or time.monotonic() >= self._ends_at
        return torch.full((len(input_ids),), is_over, device=input_ids.device, dtype=torch.bool)
