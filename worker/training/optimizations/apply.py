"""Applies the optimizations of a job's plan, each after a trial has shown that it computes the same.

One event names what is used, and why the rest is left out. What fails its trial is undone. Each optimization
replaces something of PEFT, TRL, transformers or bitsandbytes while its context is open (decision 20).
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

from transformers import PreTrainedModel

from app.core.settings import TrainingPath
from app.core.specs.job import TrainingSpec
from worker.decoder.reading import Unsupported
from worker.planning.optimizations import OptimizationPlan, describe_family, plan_optimizations
from worker.training.attempt import TrainingAttempt
from worker.training.optimizations import bnb_optimizer, trial
from worker.training.optimizations.planned import (
    Optimization,
    list_general_optimizations,
    list_optimizations,
)
from worker.training.optimizations.trial_records import PassedTrials, TrialRecords
from worker.training.trainer import AdapterTrainer

_EARLIER = " (an earlier job showed that they compute the same)"


@dataclass
class AppliedOptimizations:
    """What a job trains with; closing `stack` leaves the model and the libraries as they were."""

    names: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # names with the reason
    left_out: list[str] = field(default_factory=list)  # names with what of the model is not supported
    stack: ExitStack = field(default_factory=ExitStack)


def make_plan(
    attempt: TrainingAttempt, model: PreTrainedModel, training: TrainingSpec, path: TrainingPath
) -> OptimizationPlan:
    """What may apply to an attempt. `model`: the base model, also without weights. `training`: the spec's,
    without `auto` for batch size and checkpointing."""
    return plan_optimizations(
        attempt.request.spec.model_copy(update={"training": training}),
        attempt.device,
        describe_family(model),
        path,
        is_alone=attempt.request.is_alone,
        divides_base=attempt.world.divides_base,
    )


def apply_optimizations(
    attempt: TrainingAttempt,
    trainer: AdapterTrainer,
    plan: OptimizationPlan,
    records: TrialRecords | None = None,
) -> ExitStack:
    """Apply every planned optimization that passes its trial. Returns a stack that undoes them when closed.

    `records`: of earlier jobs, whose trials are not repeated.
    """
    passed, key = None, ""
    if records:
        key = records.key(trainer, attempt.request.spec, plan, attempt.device)
        passed = attempt.world.from_first(records.find(key))
    applied = apply_passed(trainer, plan, passed) if passed else None
    is_tried = applied is None
    if applied is None:
        applied = apply_plan(trainer, plan)
        if records and attempt.world.is_first and applied.names and not applied.failed:
            records.keep(key, PassedTrials(names=applied.names, left_out=applied.left_out))
    if plan.optimizer_without_sync:
        applied.stack.enter_context(bnb_optimizer.without_sync(trainer))
        applied.names.append("bitsandbytes optimizer without synchronization")
    if applied.failed:
        attempt.warn(
            "fast_path_wrong", f"Not used, since a trial of it failed here: {'; '.join(applied.failed)}."
        )
    reasons = [*plan.left_out, *applied.left_out]
    left_out = f"; left out: {'; '.join(reasons)}" if reasons else ""
    names = "; ".join(applied.names) or "none"
    attempt.say(f"Optimizations: {names}{left_out}{'' if is_tried else _EARLIER}.")
    return applied.stack


def apply_passed(
    trainer: AdapterTrainer, plan: OptimizationPlan, passed: PassedTrials
) -> AppliedOptimizations | None:
    """Apply those that passed their trials in an earlier job; None: one of them can't be applied here."""
    with ExitStack() as attempted:
        applied = AppliedOptimizations(left_out=passed.left_out)
        for optimization in _among(trainer, plan, passed.names):
            try:
                attempted.enter_context(optimization.context)
                obstacle = None
            except Unsupported as error:
                obstacle = str(error)
            if trainer.world.find_first(obstacle):
                return None
            applied.names.append(optimization.name)
        applied.stack = attempted.pop_all()
    return applied


def apply_plan(trainer: AdapterTrainer, plan: OptimizationPlan) -> AppliedOptimizations:
    """Try the optimizations of a plan on a few rows of the job; those that pass stay applied."""
    applied = AppliedOptimizations()
    optimizations = list_optimizations(trainer, plan)
    if not optimizations:
        return applied
    examples = trial.shorten_examples(list(islice(trainer.train_dataset, trial.ROWS)))
    running = trial.Trial(trainer, examples, compares_dropout=plan.draws_peft_masks)
    with running.restoring():
        running.run_reference()
        if plan.explicit_decoder and not _try_any(optimizations.pop(0), running, applied):
            optimizations = [*list_general_optimizations(trainer, plan), *optimizations]
        batches_stay_padded = False
        for alternatives in optimizations:
            if alternatives[0].layout == "padding-free" and batches_stay_padded:
                continue  # it needs padding-free batches
            if not _try_any(alternatives, running, applied):
                batches_stay_padded = alternatives[0].layout == "padding-free"
    return applied


def _try_any(alternatives: list[Optimization], running: trial.Trial, applied: AppliedOptimizations) -> bool:
    """Apply the first of some alternatives that passes its trial. Returns whether there was one."""
    return any(_try(optimization, running, applied) for optimization in alternatives)


def _try(optimization: Optimization, running: trial.Trial, applied: AppliedOptimizations) -> bool:
    """Apply an optimization; undo it where its trial fails. Returns whether it stays.

    All ranks compute alike: what is not supported or fails on one is used on none.
    """
    with ExitStack() as attempted:
        obstacle = None
        try:
            attempted.enter_context(optimization.context)
        except Unsupported as error:
            obstacle = str(error)
        if obstacle := running.world.find_first(obstacle):
            applied.left_out.append(f"{optimization.name} ({obstacle})")
            return False
        fault = running.world.find_first(
            running.find_fault(optimization.layout, passes=optimization.trial_passes)
        )
        if fault is None:
            applied.names.append(optimization.name)
            applied.stack.push(attempted.pop_all())
        else:
            applied.failed.append(f"{optimization.name} ({fault})")
    return fault is None


def _among(trainer: AdapterTrainer, plan: OptimizationPlan, names: list[str]) -> list[Optimization]:
    """Those of a plan that have these names, in the order of their trials."""
    optimizations = list_optimizations(trainer, plan)
    if plan.explicit_decoder and not any(one.name in names for one in optimizations[0]):
        optimizations = [*list_general_optimizations(trainer, plan), *optimizations[1:]]
    return [one for alternatives in optimizations for one in alternatives if one.name in names]
