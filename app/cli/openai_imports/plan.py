"""What an export becomes: datasets, jobs and evaluations, and what has no counterpart. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.cli.failures import UsageProblem
from app.cli.openai_imports import evaluations, jobs
from app.cli.openai_imports.evaluations import EvaluationDraft
from app.cli.openai_imports.files import Export, LeftOut, RowFile, RowKind
from app.cli.openai_imports.jobs import JobDraft
from app.cli.openai_imports.objects import OpenAIJob

_LEARNED = (RowKind.CHAT, RowKind.COMPLETIONS, RowKind.PREFERENCES)
_ENDED_BADLY = ("failed", "cancelled")


@dataclass(frozen=True)
class Choices:
    """What a person chose: base models by the beginning of OpenAI's names, files by ids, the judge."""

    base_models: Mapping[str, str]
    files: Mapping[str, Path] = field(default_factory=dict)
    judge: str | None = None

    def base_model_of(self, openai_model: str) -> str | None:
        """The base model for a model of OpenAI's: that of the longest beginning of its name."""
        name = openai_model.removeprefix("ft:")
        fitting = [one for one in self.base_models if name.startswith(one)]
        return self.base_models[max(fitting, key=len)] if fitting else None


@dataclass
class Plan:
    """What would be made, in order, and what is left out."""

    datasets: list[RowFile] = field(default_factory=list)
    jobs: list[JobDraft] = field(default_factory=list)
    evaluations: list[EvaluationDraft] = field(default_factory=list)
    graders: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)


def given_base_models(pairs: Sequence[str]) -> dict[str, str]:
    """`--base-model [OPENAI=]NAME` as a mapping; an empty key is for all models. Raises UsageProblem."""
    found = {}
    for pair in pairs:
        openai_model, equals, name = pair.rpartition("=")
        if not name or (equals and not openai_model):
            raise UsageProblem(
                f"--base-model {pair} is not of the form NAME or OPENAI=NAME.",
                hint="For example --base-model gpt-4o-mini=SmolLM2-135M-Instruct",
            )
        found[openai_model] = name
    return found


def make_plan(export: Export, choices: Choices) -> Plan:
    """Plan everything of an export."""
    plan = Plan(left_out=list(export.left_out))
    for file in export.rows:
        if file.images:
            reason = f"{file.images} of {file.rows} rows have pictures or sound; datasets here are text"
            plan.left_out.append(LeftOut(str(file.path), reason))
        elif file.kind in _LEARNED:
            plan.datasets.append(file)
    for job in sorted(export.jobs, key=lambda one: one.created_at):
        _plan_job(job, export, choices, plan)
    _plan_evals(export, choices, plan)
    _plan_graders(export, choices, plan)
    _name_unused_rows(export, plan)
    plan.unmapped = sorted(set(plan.unmapped))
    return plan


def _plan_job(job: OpenAIJob, export: Export, choices: Choices, plan: Plan) -> None:
    def leave_out(reason: str) -> None:
        plan.left_out.append(LeftOut(f"the job {job.name}", reason))

    method = job.method.type if job.method else "supervised"
    if job.status in _ENDED_BADLY:
        why = f": {job.error.message}" if job.error and job.error.message else ""
        return leave_out(f"it {job.status.replace('cancelled', 'was cancelled')} at OpenAI{why}")
    base_model = choices.base_model_of(job.model)
    if base_model is None:
        plan.unmapped.append(job.model)
        return leave_out(f"no base model is given for {job.model}: --base-model NAME")
    training = export.find_rows(job.training_file, choices.files)
    if method == "reinforcement":
        leave_out("its method, reinforcement, has no counterpart; its grader makes an evaluation")
        made = evaluations.plan_reinforcement(job, training, base_model=base_model, judge=choices.judge)
        return _add_evaluation(made, plan)
    if method not in jobs.METHODS:
        return leave_out(f"its method, {method}, has no counterpart")
    files = [training]
    if job.validation_file:
        files.append(export.find_rows(job.validation_file, choices.files))
    for file_id, file in zip((job.training_file, job.validation_file), files, strict=False):
        if file is None:
            return leave_out(evaluations.missing(str(file_id)))
        if problem := jobs.find_problem(job, file):
            return leave_out(problem)
    assert training is not None
    plan.jobs.append(jobs.plan_job(job, base_model, training, files[1] if len(files) > 1 else None))
    return None


def _plan_evals(export: Export, choices: Choices, plan: Plan) -> None:
    for found in export.evals:
        models = [run.data_source.model for run in export.runs if run.eval_id == found.id]
        asked = next((model for model in models if model), "")
        base_model = choices.base_model_of(asked)
        if base_model is None:
            plan.unmapped.append(asked or "(evals)")
            plan.left_out.append(
                LeftOut(f"the eval {found.title}", "no base model is given for it: --base-model NAME")
            )
            continue
        made = evaluations.plan_eval(
            found,
            export,
            lambda file_id: export.find_rows(file_id, choices.files),
            base_model=base_model,
            judge=choices.judge,
        )
        _add_evaluation(made, plan)


def _add_evaluation(made: EvaluationDraft | LeftOut, plan: Plan) -> None:
    if isinstance(made, LeftOut):
        plan.left_out.append(made)
    else:
        plan.evaluations.append(made)


def _plan_graders(export: Export, choices: Choices, plan: Plan) -> None:
    for number, grader in enumerate(export.graders, start=1):
        notes: list[str] = []
        name = str(grader.get("name") or f"grader-{number}")
        if kept := evaluations.clean_grader(grader, choices.judge, notes):
            plan.graders[name] = kept
        else:
            plan.left_out.append(LeftOut(f"the grader {name}", notes[0]))


def _name_unused_rows(export: Export, plan: Plan) -> None:
    """Name files of rows that nothing is learned from and no evaluation asks."""
    used = [evaluation.file.path for evaluation in plan.evaluations if evaluation.file]
    for file in export.rows:
        if file.kind in (RowKind.ITEMS, RowKind.REINFORCEMENT) and file.path not in used:
            reason = "its rows have no answers to learn, and no eval or reinforcement job here uses them"
            plan.left_out.append(LeftOut(str(file.path), reason))
