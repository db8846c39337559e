"""The evaluation with which a job ends: base model and adapter on a few rows that were held out.

It runs after the last optimizer step with the weights that are saved, without the job's optimizations. A
failure is a warning and ends no job.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from app.core.jobs.events import EvaluatedRow, FinalEvaluation
from app.core.specs.states import Phase
from worker.models.device import is_out_of_memory
from worker.models.files import description
from worker.planning.sample_answers import FINAL_ROWS, FINAL_SECONDS
from worker.processes.reports import Happened
from worker.templates import renderer
from worker.templates.token_rows import IGNORED, TokenRow
from worker.training import adapter, loss, memory
from worker.training.attempt import TrainingAttempt
from worker.training.batches import Collator
from worker.training.samples.generation import AnswerLimits, Generated, SampleGenerator
from worker.training.samples.prompts import MAX_PROMPT_TOKENS, AnswerDecoder
from worker.training.samples.references import Reference, choose_references
from worker.training.trainer import AdapterTrainer

# Tokens of a batch's prompts and answers, padding included: the size of its cache.
_BATCH_TOKENS = 4096
_CONTEXT = 2048

# (answer of the base model, answer with the adapter)
Answers = tuple[Generated, Generated]


def evaluate_against_base(
    attempt: TrainingAttempt,
    trainer: AdapterTrainer,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenRow],
    base_biases: Mapping[str, torch.Tensor],
    *,
    folder: Path,
    step: int,
    epoch: float,
) -> None:
    """Report the final evaluation of a job that holds out rows, unless `evaluate` is false.

    `folder`: of the base model. `base_biases`: from `adapter.copy_trained_biases`. `step`: whose adapter is
    saved. Raises Stopped where the worker has requested a stop.
    """
    if not (attempt.request.spec.evaluate and held_out):
        return
    attempt.enter(Phase.EVALUATING)
    try:
        found = _evaluate(attempt, trainer, tokenizer, held_out, base_biases, folder)
    # A model's own code, a kernel, a template or a library may raise anything; the job does not depend on it.
    except Exception as error:
        traceback.print_exc()
        why = "memory ran out" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
    else:
        if found is not None:
            report = found.model_copy(update={"step": step, "epoch": epoch})
            attempt.send(Happened(event=report))
        return
    memory.free()  # the error is deleted by now, and with it the tensors that it refers to
    attempt.warn("final_evaluation_failed", f"The evaluation at the end of the job failed: {why}.")


def _evaluate(
    attempt: TrainingAttempt,
    trainer: AdapterTrainer,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenRow],
    base_biases: Mapping[str, torch.Tensor],
    folder: Path,
) -> FinalEvaluation | None:
    """The evaluation without its step; None: a stop was requested, or no row can be evaluated on."""
    end_ids = frozenset(renderer.end_token_ids(tokenizer, description.read_end_ids(folder)))
    text = AnswerDecoder(tokenizer, end_ids)
    new_tokens = attempt.request.spec.training.sample_max_new_tokens
    context = description.read_context_length(folder) or _CONTEXT
    references = choose_references(
        attempt.request,
        tokenizer,
        held_out,
        text,
        count=FINAL_ROWS,
        max_tokens=min(context - new_tokens, MAX_PROMPT_TOKENS),
    )
    if not references:
        attempt.say("No row that was held out has a prompt and an answer that the last evaluation could use.")
        return None
    limits = AnswerLimits(new_tokens, end_ids, attempt.asked_to_stop.is_set)
    evaluator = FinalEvaluator(trainer, SampleGenerator(trainer, limits), base_biases, limits)
    return evaluator.evaluate(references, text, held_out=len(held_out))


class FinalEvaluator:
    """Computes losses and answers of base model and adapter. The model's attention must be the plain one."""

    def __init__(
        self,
        trainer: AdapterTrainer,
        generator: SampleGenerator,
        base_biases: Mapping[str, torch.Tensor],
        limits: AnswerLimits,
        *,
        seconds: float = FINAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds`: losses end after half of them; no more answers are begun when they are over."""
        self._trainer = trainer
        self._generator = generator
        self._base_biases = base_biases
        self._limits = limits
        self._seconds = seconds
        self._clock = clock
        self._began = clock()

    def evaluate(
        self, references: Sequence[Reference], text: AnswerDecoder, *, held_out: int
    ) -> FinalEvaluation | None:
        """The evaluation, with step and epoch 0; None where a stop was requested meanwhile."""
        losses = self._score(references)
        answers = self._answer(references[: len(losses)])
        if self._limits.is_stopped() or not losses:
            return None
        rows = [
            _row(reference, own, answers[place] if place < len(answers) else None, text)
            for place, (reference, own) in enumerate(zip(references, losses, strict=False))
        ]
        tokens = sum(row.tokens for row in rows)
        return FinalEvaluation(
            step=0,
            epoch=0.0,
            seconds=round(self._clock() - self._began, 3),
            held_out=held_out,
            base_loss=sum(row.base_loss * row.tokens for row in rows) / tokens,
            adapter_loss=sum(row.adapter_loss * row.tokens for row in rows) / tokens,
            rows=rows,
        )

    def _base(self) -> AbstractContextManager[None]:
        return adapter.switched_off(self._trainer.model, self._base_biases)

    def _score(self, references: Sequence[Reference]) -> list[tuple[float, float]]:
        """(loss of the base model, loss with the adapter) of each row for which there was time."""
        sides = []
        for context, share in ((self._base(), 0.25), (nullcontext(), 0.5)):
            with self._generator.evaluation_mode(), torch.no_grad(), context:
                sides.append(list(self._losses(references, until=self._began + share * self._seconds)))
        return list(zip(*sides, strict=False))

    def _losses(self, references: Sequence[Reference], *, until: float) -> Iterator[float]:
        model = self._trainer.model.get_base_model()
        collate = Collator(pad_token_id=0)
        for place, reference in enumerate(references):
            if self._limits.is_stopped() or (place and self._clock() >= until):
                return
            prompt_ids, answer_ids = reference.prompt.token_ids, reference.answer_ids
            labels = [IGNORED] * len(prompt_ids) + answer_ids
            batch = collate([{"input_ids": prompt_ids + answer_ids, "labels": labels}])
            on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
            yield float(-loss.score(model, on_device).log_prob_sum / len(answer_ids))

    def _answer(self, references: Sequence[Reference]) -> list[Answers]:
        """Answers to the first prompts, to as many as there is time for; none where a stop was requested."""
        answers: list[Answers] = []
        for batch in _batches(references, self._limits.max_new_tokens):
            left = self._seconds - (self._clock() - self._began)
            if left <= 0:
                break
            prompts = [reference.prompt.token_ids for reference in batch]
            adapted = self._generate(prompts, left / 2)
            with self._base():
                base = self._generate(prompts, left / 2)
            if adapted is None or base is None:
                return []
            answers.extend(zip(base, adapted, strict=True))
        return answers

    def _generate(self, prompts: Sequence[Sequence[int]], max_seconds: float) -> list[Generated] | None:
        """Answers to the prompts; half of them at a time where memory runs out."""
        try:
            return self._generator.generate(prompts, max_seconds=max_seconds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(prompts) == 1:
                raise
        memory.free()  # the error is deleted by now, and with it the tensors that it refers to
        half = len(prompts) // 2
        parts = [self._generate(part, max_seconds / 2) for part in (prompts[:half], prompts[half:])]
        return None if None in parts else [one for part in parts if part for one in part]


def _batches(references: Sequence[Reference], new_tokens: int) -> Iterator[list[Reference]]:
    """The rows in order, in batches that are not too large when they are padded."""
    batch: list[Reference] = []
    longest = 0
    for reference in references:
        longest = max(longest, len(reference.prompt.token_ids))
        if batch and (len(batch) + 1) * (longest + new_tokens) > _BATCH_TOKENS:
            yield batch
            batch, longest = [], len(reference.prompt.token_ids)
        batch.append(reference)
    if batch:
        yield batch


def _row(
    reference: Reference, losses: tuple[float, float], answers: Answers | None, text: AnswerDecoder
) -> EvaluatedRow:
    row = EvaluatedRow(
        line=reference.line,
        prompt=reference.prompt.text,
        expected=reference.prompt.expected or "",
        tokens=len(reference.answer_ids),
        base_loss=losses[0],
        adapter_loss=losses[1],
    )
    if answers is None:
        return row
    base, adapted = answers
    return row.model_copy(
        update={
            "base_answer": text.decode(base.token_ids),
            "base_is_cut": base.is_cut,
            "adapter_answer": text.decode(adapted.token_ids),
            "adapter_is_cut": adapted.is_cut,
        }
    )
