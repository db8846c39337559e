"""Turns what a person asks for into an evaluation: finds its models, checks its rows. Commits nothing."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.adapters.names import get_adapter
from app.core.aliases import records as alias_records
from app.core.aliases.shares import AliasTarget
from app.core.datasets import records as dataset_records
from app.core.datasets.rows import DatasetFormat
from app.core.engine import workers
from app.core.errors import InvalidRequest
from app.core.errors.adapters import AdapterNotFound
from app.core.errors.aliases import AliasAmbiguous
from app.core.errors.jobs import JobNotFound
from app.core.evaluations import records
from app.core.evaluations.items import EvaluationItem, ItemUnfit, draw, read_inline
from app.core.evaluations.local_judge import find_served
from app.core.evaluations.spec import (
    DEFAULT_ROWS,
    EvaluatedModel,
    EvaluationRequest,
    EvaluationSpec,
    ModelChoice,
    unique,
)
from app.core.graders.python_process import check_allowed
from app.core.graders.shapes import AnyGrader, Grader, LabelModelGrader, MultiGrader, ScoreModelGrader
from app.core.jobs import records as job_records
from app.core.keys.records import OWNER, Caller
from app.core.settings import Settings
from app.core.specs.job import JobSpec, QuantizationSpec
from app.core.storage import tables

GraderT = TypeVar("GraderT", bound=BaseModel)


def submit(
    session: Session,
    settings: Settings,
    request: EvaluationRequest,
    *,
    definition_id: str | None = None,
    origin: dict[str, object] | None = None,
    caller: Caller = OWNER,
) -> tables.EvaluationRow:
    """Check the request and put the evaluation of this caller in the queue.

    What it needs can't be deleted until the transaction ends, and then not until it has ended. Raises
    InvalidRequest, AdapterNotFound, AdapterNotReady, ModelNotAllowed, UnknownModel, DatasetNotFound,
    DatasetNotReady, JobNotFound, QueueFull, KeyQueueFull, ScopeMissing.
    """
    graders = _name_judges(session, request.graders)
    check_graders(session, settings, graders)
    models = _find_models(session, settings, request.models)
    limit = request.limit
    if limit is None and request.rows is None:
        limit = DEFAULT_ROWS
    spec = EvaluationSpec(
        dataset=_hold_dataset(session, request),
        held_out_of=request.held_out_of,
        input=request.input,
        models=models,
        baseline=_find_baseline(models, request.baseline),
        graders=graders,
        sampling=request.sampling,
        generate=request.generate,
        limit=limit,
        seed=request.seed,
        priority=request.priority,
    )
    return records.submit(
        session,
        spec,
        name=request.name,
        inline=_read_inline(request, spec),
        definition_id=definition_id,
        origin=origin,
        max_waiting=settings.max_queued_jobs,
        caller=caller,
    )


def check_graders(session: Session, settings: Settings, graders: Sequence[AnyGrader]) -> None:
    """Raise InvalidRequest for a grader that can't run here."""
    for index, grader in enumerate(graders):
        check_allowed(grader, settings)
        parts = list(grader.graders.values()) if isinstance(grader, MultiGrader) else [grader]
        for part in parts:
            if not isinstance(part, ScoreModelGrader | LabelModelGrader) or settings.judge_url:
                continue
            if find_served(session, settings, part.model) is None:
                raise InvalidRequest(
                    f"There is no model {part.model!r} on this server that could grade.",
                    param=f"graders.{index}.model",
                    hint="Name an adapter or a base model in the models folder; TUNESMITH_JUDGE_URL names "
                    "another server whose models grade.",
                )


def _name_judges(session: Session, graders: Sequence[Grader]) -> list[Grader]:
    """The graders, with the model that an alias points to in its place: it must not change half-way."""
    return [_name_judge(session, grader, f"graders.{index}.model") for index, grader in enumerate(graders)]


def _name_judge(session: Session, grader: GraderT, param: str) -> GraderT:
    if isinstance(grader, MultiGrader):
        parts = {name: _name_judge(session, part, param) for name, part in grader.graders.items()}
        return grader.model_copy(update={"graders": parts})
    is_judge = isinstance(grader, ScoreModelGrader | LabelModelGrader)
    alias = alias_records.find(session, getattr(grader, "model", "")) if is_judge else None
    if alias is None:
        return grader
    return grader.model_copy(update={"model": _get_only_target(alias, param).key})


def _find_models(
    session: Session, settings: Settings, choices: list[ModelChoice | str]
) -> list[EvaluatedModel]:
    """The models that were named, each with a label of its own."""
    local = set(workers.find_local_names(session, settings))
    named = [
        _name(session, index, choice, local) if isinstance(choice, str) else choice
        for index, choice in enumerate(choices)
    ]
    found = [
        _find_adapter(session, index, choice) if choice.adapter else None
        for index, choice in enumerate(named)
    ]
    labels = unique([_label(choice, model) for choice, model in zip(named, found, strict=True)])
    quantizations = {model.base_model: model.quantization for model in reversed(found) if model}
    models: list[EvaluatedModel] = []
    for choice, adapter, label in zip(named, found, labels, strict=True):
        if adapter is not None:
            models.append(adapter.model_copy(update={"label": label}))
            continue
        name = choice.base_model or ""
        workers.check_base_model(session, settings, name)
        quantization = choice.quantization or quantizations.get(name) or QuantizationSpec()
        models.append(EvaluatedModel(label=label, base_model=name, quantization=quantization))
    return models


def _name(session: Session, index: int, text: str, local: set[str]) -> ModelChoice:
    """What a text names: an alias, else a base model in the models folder, an adapter, a base model."""
    alias = alias_records.find(session, text)
    if alias is not None:
        target = _get_only_target(alias, f"models.{index}")
        return ModelChoice(
            adapter=target.adapter, base_model=None if target.adapter else target.base_model, label=text[:100]
        )
    if text in local:
        return ModelChoice(base_model=text)
    try:
        adapter_records.get(session, text)
    except AdapterNotFound as error:
        if "/" not in text:
            raise AdapterNotFound(
                f"There is neither a base model nor an adapter {text!r}.",
                param=f"models.{index}",
                hint="GET /models lists base models, GET /adapters adapters.",
            ) from error
        return ModelChoice(base_model=text)
    return ModelChoice(adapter=text)


def _get_only_target(alias: tables.AliasRow, param: str) -> AliasTarget:
    try:
        return alias_records.get_only_target(alias)
    except AliasAmbiguous as error:
        raise AliasAmbiguous(error.message, param=param, hint=error.hint) from error


def _find_adapter(session: Session, index: int, choice: ModelChoice) -> EvaluatedModel:
    assert choice.adapter is not None
    try:
        row = get_adapter(session, choice.adapter)
    except AdapterNotFound as error:
        raise AdapterNotFound(error.message, param=f"models.{index}", hint=error.hint) from error
    return EvaluatedModel(
        label=row.name,
        base_model=row.base_model,
        quantization=QuantizationSpec.model_validate(row.quantization),
        adapter=row.id,
        adapter_name=row.name,
        step=row.step,
    )


def _label(choice: ModelChoice, adapter: EvaluatedModel | None) -> str:
    return choice.label or (adapter.label if adapter else choice.base_model or "")


def _find_baseline(models: list[EvaluatedModel], wanted: str | None) -> int:
    """Which model the others are compared with: the one of that label, else the first base model."""
    if wanted is None:
        return next((index for index, model in enumerate(models) if model.adapter is None), 0)
    for index, model in enumerate(models):
        if wanted in (model.label, model.adapter, model.adapter_name):
            return index
    labels = ", ".join(model.label for model in models)
    raise InvalidRequest(
        f"`baseline` names {wanted!r}, which is none of the models.",
        param="baseline",
        hint=f"Their labels are: {labels}.",
    )


def _hold_dataset(session: Session, request: EvaluationRequest) -> str | None:
    """The id of the dataset whose rows are evaluated on; it is not deleted until the transaction ends."""
    if request.held_out_of is not None:
        return _hold_jobs_dataset(session, request.held_out_of)
    if request.dataset is None:
        return None
    dataset_records.hold(session, request.dataset)
    dataset = dataset_records.get(session, request.dataset)
    if dataset.format == DatasetFormat.TEXT and request.generate:
        raise InvalidRequest(
            "The rows of this dataset are texts without a prompt: there is nothing to ask.",
            param="dataset",
            hint="Set `generate` to false, with `perplexity` graders, to measure their likelihood.",
        )
    return request.dataset


def _hold_jobs_dataset(session: Session, job_id: str) -> str:
    try:
        job = job_records.get(session, job_id)
    except JobNotFound as error:
        raise JobNotFound(error.message, param="held_out_of", hint=error.hint) from error
    spec = JobSpec.model_validate(job.spec)
    if not spec.validation_dataset and not spec.training.validation_split:
        raise InvalidRequest(
            f"Job {job_id} held no rows out.",
            param="held_out_of",
            hint="Name a `dataset` instead, or train with `training.validation_split`.",
        )
    dataset_id = spec.validation_dataset or spec.dataset
    dataset_records.hold(session, dataset_id, param="held_out_of")
    return dataset_id


def _read_inline(request: EvaluationRequest, spec: EvaluationSpec) -> list[EvaluationItem] | None:
    if request.rows is None:
        return None
    items: list[EvaluationItem] = []
    for index, item in enumerate(request.rows):
        try:
            items.append(read_inline(item, spec))
        except ItemUnfit as error:
            raise InvalidRequest(f"rows.{index}: {error}.", param=f"rows.{index}") from None
    if request.limit is not None and len(items) > request.limit:
        items = [items[index] for index in draw(range(len(items)), request.limit, request.seed)]
    return items
