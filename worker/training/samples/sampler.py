"""When a job's sample answers are generated, and how they are reported. A failure ends no job."""

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from app.core.errors import TunesmithError
from app.core.jobs.events import SampleAnswer, Samples
from worker.models.device import is_out_of_memory
from worker.models.files import description
from worker.planning.sample_answers import SHARE
from worker.processes.reports import Happened
from worker.templates import renderer
from worker.templates.token_rows import TokenRow
from worker.training import memory
from worker.training.attempt import TrainingAttempt
from worker.training.progress.counters import Counters
from worker.training.samples.generation import AnswerLimits, Generated, SampleGenerator
from worker.training.samples.prompts import AnswerDecoder, SamplePrompt, find_prompts
from worker.training.trainer import AdapterTrainer

# Tokens that a model reads whose configuration does not say how many.
_CONTEXT = 2048


class AnswerSampler(TrainerCallback):
    """Generates before training, at evaluations, and with the finished adapter; nothing without prompts."""

    def __init__(
        self,
        attempt: TrainingAttempt,
        counters: Counters,
        generator: SampleGenerator,
        prompts: list[SamplePrompt],
        text: AnswerDecoder,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempt = attempt
        self._counters = counters
        self._generator = generator
        self._prompts = prompts
        self._text = text
        self._clock = clock
        self._is_limited = attempt.request.spec.training.sample_prompts == "auto"
        self._last: Samples | None = None

    def start(self) -> None:
        """Sample the model before training."""
        self._sample(step=0, epoch=0.0)

    def finish(self, step: int, epoch: float) -> None:
        """Report the answers of the adapter that the job saves, which is that of `step`."""
        if self._last is None or self._last.step != step:
            self._last = None
            self._sample(step=step, epoch=epoch, is_final=True)
        else:
            self._send(self._last.model_copy(update={"is_final": True}))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_affordable():
            taken = self._sample(step=state.global_step, epoch=state.epoch or 0.0)
            self._counters.sample_seconds += taken

    def _is_affordable(self) -> bool:
        if not self._is_limited:
            return True
        last = self._last.seconds if self._last else 0.0
        return self._counters.sample_seconds + last <= SHARE * self._counters.seconds

    def _sample(self, *, step: int, epoch: float, is_final: bool = False) -> float:
        """Generate and report answers; returns the seconds that it took."""
        if not self._prompts or self._attempt.asked_to_stop.is_set():
            return 0.0
        began = self._clock()
        found = self._generate()
        seconds = self._clock() - began
        if found is None:
            return seconds
        answers = [
            SampleAnswer(
                prompt=prompt.text,
                expected=prompt.expected,
                answer=self._text.decode(one.token_ids),
                is_cut=one.is_cut,
            )
            for prompt, one in zip(self._prompts, found, strict=True)
        ]
        self._last = Samples(
            step=step, epoch=epoch, is_final=is_final, seconds=round(seconds, 3), answers=answers
        )
        self._send(self._last)
        return seconds

    def _generate(self) -> list[Generated] | None:
        """The answers; None at a stop, or after an error: a warning, and no more are generated."""
        try:
            return self._generator.generate([prompt.token_ids for prompt in self._prompts])
        # A model's own code, a kernel or a library may raise anything; the job does not depend on this.
        except Exception as error:
            traceback.print_exc()
            why = "memory ran out" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        memory.free()  # the error is deleted by now, and with it the tensors that it refers to
        self._prompts = []
        _warn(self._attempt, f"No sample answers are generated any more: {why}. The job goes on.")
        return None

    def _send(self, samples: Samples) -> None:
        self._attempt.send(Happened(event=samples))


def make_sampler(
    attempt: TrainingAttempt,
    trainer: AdapterTrainer,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenRow],
    folder: Path,
) -> AnswerSampler:
    """The sampler of a job; without prompts where these can't be made, which is a warning.

    Called before optimizations are applied. `folder`: of the base model.
    """
    training = attempt.request.spec.training
    end_ids = frozenset(renderer.end_token_ids(tokenizer, description.read_end_ids(folder)))
    text = AnswerDecoder(tokenizer, end_ids)
    context = description.read_context_length(folder) or _CONTEXT
    prompts: list[SamplePrompt] = []
    try:
        prompts = find_prompts(
            attempt.request, tokenizer, held_out, text, max_tokens=context - training.sample_max_new_tokens
        )
    # Whatever a chat template or a tokenizer makes of them: the job does not depend on this.
    except Exception as error:
        traceback.print_exc()
        message = error.message if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
        _warn(attempt, f"No sample answers are generated: {message}")
    named = training.sample_prompts
    if prompts and not isinstance(named, str) and len(prompts) < len(named):
        _warn(
            attempt,
            f"{len(named) - len(prompts)} of training.sample_prompts are left out: with the answer they are "
            f"longer than the {context:,} tokens that the model reads.",
        )
    limits = AnswerLimits(training.sample_max_new_tokens, end_ids, attempt.asked_to_stop.is_set)
    return AnswerSampler(attempt, trainer.counters, SampleGenerator(trainer, limits), prompts, text)


def _warn(attempt: TrainingAttempt, message: str) -> None:
    attempt.warn("samples_failed", message)
