"""The preflight report of a job: rows, tokens, steps, memory, disk, time.

Loads a tokenizer, never a model.
"""

import math
import shutil
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from app.core.engine.messages import ServingPath
from app.core.engine.preflight import (
    MAX_LINES,
    Checked,
    CheckRequest,
    Chosen,
    DeviceFigures,
    DiskFigures,
    LengthBucket,
    Lines,
    MemoryFigures,
    MemoryFit,
    Notice,
    Preflight,
    PreflightRequest,
    TimeFigures,
    TokenFigures,
)
from app.core.engine.serving import Serving
from app.core.specs.job import TrainingSpec
from worker.models import base_model, serving_path
from worker.models.files import checkpoint_weights, description, fingerprint, location
from worker.planning import automatic_settings, batch_size, model_checks, model_shape, time_estimate
from worker.planning.memory_estimate import Memory, ModelShape
from worker.planning.preference_examples import needs_reference, without_dropout
from worker.planning.sample_answers import estimate_final_seconds, estimate_sample_seconds
from worker.planning.strategy import SharedJob, choose_strategy
from worker.preflight.environment import NO_TEMPLATE, PreflightEnvironment, load_tokenizer
from worker.preflight.notices import find_notices
from worker.preflight.reading import Reading, read_dataset
from worker.preflight.schedule import Schedule, make_schedule, pack_lengths
from worker.templates.choice import TemplateSource
from worker.templates.notices import describe_rows

_SHORTEST_BUCKET = 32
_CHECKPOINTS = 3  # two complete ones while the next is written
_BUSY = Notice(
    code="device_busy",
    message="Another job has the device now; what fits is reckoned as if all of its memory were free.",
)


def run_preflight(request: PreflightRequest, environment: PreflightEnvironment) -> Preflight:
    """Report what the job would do.

    Raises the errors that the job itself would fail with: InvalidRequest, NothingToLearn, BadTarget,
    ModelMissing…
    """
    request = request.model_copy(update={"spec": without_dropout(request.spec)})
    spec, device = request.spec, environment.device
    automatic_settings.mixed_precision(spec.training, device)
    automatic_settings.check_modules_to_save(spec, device)
    folder, notices = environment.find_model(spec.base_model)
    if not notices:
        fingerprint.take_fingerprint(folder)  # the job would refuse weights that are not whole
    tokenizer, source = load_tokenizer(folder, spec.chat_template)
    max_length = automatic_settings.max_seq_length(spec.training, description.read_context_length(folder))
    model = description.build_empty(folder)
    notices += [
        Notice(code=one.code, message=one.message) for one in model_checks.check_model(model, spec, tokenizer)
    ]
    checkpoint_weights.check_stored(folder, model)
    embedding_rows = model_shape.count_embedding_rows(model)
    reading = read_dataset(request, environment, tokenizer, max_length, embedding_rows)
    if source is TemplateSource.PLAIN and reading.has_conversations:
        notices.append(NO_TEMPLATE)
    notices += describe_rows(reading.formatted, reading.extrapolate)
    if environment.is_busy:
        notices.append(_BUSY)
    if slow := automatic_settings.find_slow_products(spec, device):
        notices.append(Notice(code="slow_products", message=slow))
    job = batch_size.PlannedJob.read(spec, device, model, environment.path)
    obstacles = job.serving_obstacles
    if obstacles:
        notices.append(Notice(code="general_path", message=serving_path.explain(obstacles)))
    lengths = [length for example in reading.examples for length, _learned in example]
    shared, schedule = _plan(job, reading, max_length, free_bytes=environment.free_bytes)
    job, chosen = shared.job, shared.batch
    answer = Preflight(
        rows=request.dataset.rows,
        sampled_rows=reading.rows_read if reading.is_sample else None,
        training_rows=reading.extrapolate(reading.training_rows),
        evaluation_rows=reading.evaluation_rows,
        tokens=count_tokens(lengths, reading),
        trained_token_share=reading.formatted.trained_tokens / reading.formatted.tokens,
        truncated=_lines(reading.formatted.cut_lines, reading),
        dropped=_lines(reading.formatted.dropped_lines, reading),
        optimizer_steps=schedule.optimizer_steps,
        padding_share=schedule.padding_share,
        memory=_memory_figures(chosen.memory),
        device=DeviceFigures(
            name=device.name, memory_bytes=device.memory_bytes, free_bytes=environment.free_bytes
        ),
        fits=chosen.fits,
        chosen=_chosen(shared, max_length),
        disk=_disk_figures(job.shape, chosen, folder, environment),
        time=guess_time(
            schedule,
            lengths,
            reading.scale,
            job,
            chosen.training,
            evaluation_rows=reading.evaluation_rows,
            evaluates=spec.evaluate,
        ),
        serving=Serving(
            path=ServingPath.GENERAL if obstacles else ServingPath.PAGED, reason=", ".join(obstacles) or None
        ),
        warnings=notices,
    )
    return answer.model_copy(update={"warnings": [*notices, *find_notices(answer, spec)]})


def _plan(
    job: batch_size.PlannedJob, reading: Reading, max_length: int, *, free_bytes: int
) -> tuple[SharedJob, Schedule]:
    """The job as its devices share it, and its steps, with the rows that were read."""
    packed_length = max_length if job.spec.training.packing else None
    sequences = [[length for length, _learned in example] for example in reading.examples]
    if packed_length is None:
        rows = batch_size.RowLengths.measure_sequences(reading.examples)
    else:
        learned = [count for example in reading.examples for _length, count in example]
        lengths = [length for of_row in sequences for length in of_row]
        rows = batch_size.RowLengths.measure(lengths, learned, packed_length=packed_length)
        sequences = [[length] for length in pack_lengths(lengths, packed_length)]
    shared = choose_strategy(job, rows, free_bytes=free_bytes)
    schedule = make_schedule(
        [sum(of_row) for of_row in sequences],
        shared.batch.training,
        sample_of=reading.scale,
        gpus=job.spec.resources.ranks,
        sequences=sequences,
    )
    return shared, schedule


def check_spec(request: CheckRequest, environment: PreflightEnvironment) -> Checked:
    """Look at a base model that is on this machine, for a job that is about to be submitted.

    Knows nothing of the device, since another worker may train. Raises InvalidRequest, BadTarget,
    ModelUnreadable.
    """
    spec = request.spec
    folder = location.find_here(spec.base_model, environment.models_folder)
    folder = folder or location.find_downloaded(spec.base_model)
    if folder is None:
        return Checked(is_here=False)
    model = description.build_empty(folder)
    tokenizer, _source = load_tokenizer(folder, spec.chat_template)
    model_checks.check_model(model, spec, tokenizer)
    checkpoint_weights.check_stored(folder, model)
    batch_size.PlannedJob.read(spec, environment.device, model, environment.path)
    return Checked(is_here=True)


def find_memory_fit(request: PreflightRequest, environment: PreflightEnvironment) -> MemoryFit:
    """Whether the job fits into the environment's free memory. Raises the errors of `run_preflight`."""
    answer = run_preflight(request, environment)
    return MemoryFit(fits=answer.fits, bytes=answer.memory.total)


def count_tokens(lengths: Sequence[int], reading: Reading) -> TokenFigures:
    """Token counts of the rows to train on."""
    ordered = sorted(lengths)
    return TokenFigures(
        total=reading.extrapolate(sum(ordered)),
        mean=sum(ordered) / len(ordered),
        p50=_percentile(ordered, 0.5),
        p95=_percentile(ordered, 0.95),
        max=ordered[-1],
        histogram=_histogram(ordered, reading),
    )


def guess_time(
    schedule: Schedule,
    lengths: Sequence[int],
    scale: float,
    job: batch_size.PlannedJob,
    training: TrainingSpec,
    *,
    evaluation_rows: int = 0,
    evaluates: bool = False,
) -> TimeFigures:
    """The estimated time of a job with rows of these lengths, which are one of `scale` of all rows.

    `evaluates`: whether the job ends with an evaluation on the rows that it holds out.
    """
    tokens = schedule.epochs * scale * sum(lengths)
    settings = time_estimate.TimeSettings.plan(job, training)
    row_length = sum(length * length for length in lengths) / sum(lengths)
    seconds = time_estimate.estimate_seconds(
        job.shape,
        settings,
        schedule.batches,
        steps=schedule.optimizer_steps,
        accumulation=training.gradient_accumulation_steps,
        row_length=row_length,
    )
    sample_seconds = 0.0
    # A job whose devices divide the base model generates no answers.
    if job.parts == 1:
        sample_seconds += estimate_sample_seconds(
            training,
            job.shape,
            settings,
            evaluation_rows=evaluation_rows,
            steps=schedule.optimizer_steps,
            step_seconds=seconds,
        )
    if job.parts == 1 and evaluates:
        sample_seconds += estimate_final_seconds(
            training, job.shape, settings, evaluation_rows=evaluation_rows
        )
    return TimeFigures(
        seconds=seconds,
        sample_seconds=sample_seconds,
        reference_seconds=_reference_seconds(job, settings, schedule, training, scale, row_length),
        tokens_per_second=tokens / seconds,
        basis="guess",
    )


def _reference_seconds(
    job: batch_size.PlannedJob,
    settings: time_estimate.TimeSettings,
    schedule: Schedule,
    training: TrainingSpec,
    scale: float,
    row_length: float,
) -> float:
    """The time of the reference log-probabilities: those of one epoch, or of fewer steps."""
    if not needs_reference(job.spec.preferences):
        return 0.0
    all_passes = schedule.optimizer_steps * training.gradient_accumulation_steps
    return time_estimate.estimate_reference_seconds(
        job.shape,
        settings,
        schedule.batches,
        passes=min(all_passes, math.ceil(scale * len(schedule.batches) / job.spec.resources.ranks)),
        row_length=row_length,
    )


def _lines(lines: list[int], reading: Reading) -> Lines:
    return Lines(count=reading.extrapolate(len(lines)), lines=lines[:MAX_LINES])


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _histogram(ordered: Sequence[int], reading: Reading) -> list[LengthBucket]:
    """Counts of rows by length, each bucket twice as wide as the one before, up to the longest row."""
    bars, up_to, below = [], _SHORTEST_BUCKET, 0
    while below < len(ordered):
        end = bisect_left(ordered, up_to + 1)
        bars.append(LengthBucket(up_to=up_to, rows=reading.extrapolate(end - below)))
        up_to, below = 2 * up_to, end
    return bars


def _memory_figures(memory: Memory) -> MemoryFigures:
    return MemoryFigures(
        weights=memory.weights,
        lora=memory.lora,
        optimizer=memory.optimizer,
        activations=memory.activations,
        overhead=memory.overhead,
        total=memory.total,
        paged=memory.paged,
    )


def _chosen(shared: SharedJob, max_length: int) -> Chosen:
    spec, device = shared.job.spec, shared.job.device
    fp16, bf16 = automatic_settings.mixed_precision(spec.training, device)
    dtype = base_model.compute_dtype(automatic_settings.quantization(spec, device), device)
    training = shared.batch.training
    return Chosen.model_validate(
        {
            "gradient_checkpointing": training.gradient_checkpointing,
            "per_device_train_batch_size": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "compute_dtype": str(dtype).removeprefix("torch."),
            "mixed_precision": "fp16" if fp16 else "bf16" if bf16 else "none",
            "max_seq_length": max_length,
            "strategy": shared.strategy,
            "strategy_reason": shared.reason,
        }
    )


def _disk_figures(
    shape: ModelShape, chosen: batch_size.ChosenBatch, folder: Path, environment: PreflightEnvironment
) -> DiskFigures:
    memory, checkpoint_adapters = chosen.memory, chosen.training.keep_checkpoints
    weights = 4 * shape.trained_weights
    tokenizer = sum(path.stat().st_size for path in folder.glob("*token*") if path.is_file())
    environment.cache_folder.mkdir(parents=True, exist_ok=True)
    return DiskFigures(
        checkpoints=_CHECKPOINTS * (weights + memory.optimizer + memory.paged),
        adapter=(1 + checkpoint_adapters) * (weights + tokenizer),
        free=shutil.disk_usage(environment.cache_folder).free,
    )
