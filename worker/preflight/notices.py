"""Notices for a user before a job starts, derived from its preflight report."""

from collections.abc import Iterator

from app.core.engine.preflight import Lines, Notice, Preflight
from app.core.specs.job import JobSpec, TrainingSpec
from worker.planning.sample_answers import NO_ANSWERS
from worker.planning.strategy import advise_on_memory

_MUCH_PADDING = 0.4
_FEW_STEPS = 10
_LINES_SHOWN = 20


def find_notices(answer: Preflight, spec: JobSpec) -> Iterator[Notice]:
    """Yield the notices, those that may stop the job first."""
    training = spec.training
    yield from _warn_of_memory_and_disk(answer, spec)
    if answer.chosen.strategy == "fsdp":
        yield Notice(code="no_answers", message=NO_ANSWERS)
    yield from _warn_of_rows(answer, training)
    if answer.padding_share > _MUCH_PADDING:
        cure = "training.packing or training.group_by_length"
        if spec.preferences:
            cure = "a lower training.per_device_train_batch_size, or training.group_by_length"
        yield Notice(
            code="much_padding",
            message=f"{answer.padding_share:.0%} of what is computed is padding: set {cure}.",
        )
    if answer.optimizer_steps < _FEW_STEPS:
        yield Notice(
            code="few_steps",
            message=f"Few optimizer steps ({answer.optimizer_steps}) teach little: raise "
            "training.num_train_epochs or lower the batch size.",
        )


def _warn_of_memory_and_disk(answer: Preflight, spec: JobSpec) -> Iterator[Notice]:
    needed, device, disk = answer.memory.total, answer.device, answer.disk
    disk_needed = disk.checkpoints + disk.adapter
    if not answer.fits:
        yield Notice(
            code="memory_short",
            message=f"The job needs about {_gb(needed)} of memory, and {_gb(device.free_bytes)} of "
            f"{device.name} are free. {advise_on_memory(spec, answer.chosen.strategy)}",
        )
    if disk_needed > disk.free:
        yield Notice(
            code="disk_short",
            message=f"The job needs about {_gb(disk_needed)} of disk, and {_gb(disk.free)} are free.",
        )


def _warn_of_rows(answer: Preflight, training: TrainingSpec) -> Iterator[Notice]:
    max_length = answer.chosen.max_seq_length
    if answer.sampled_rows:
        yield Notice(
            code="sampled",
            message=f"The dataset takes long to read: {answer.sampled_rows:,} rows, spread evenly, were "
            f"read, and the figures for all {answer.rows:,} are reckoned from them.",
        )
    if training.max_seq_length and training.max_seq_length > max_length:
        yield Notice(
            code="context_length",
            message=f"max_seq_length is {training.max_seq_length}, but the base model reads at most "
            f"{max_length} tokens.",
        )
    if answer.truncated.count:
        yield Notice(
            code="rows_cut",
            message=f"{answer.truncated.count:,} rows are longer than {max_length} tokens and will be "
            f"cut: {_name(answer.truncated)}.",
        )
    if answer.dropped.count:
        yield Notice(
            code="rows_dropped",
            message=f"{answer.dropped.count:,} rows keep no token to learn from and will be left out: "
            f"{_name(answer.dropped)}.",
        )


def _name(lost: Lines) -> str:
    shown = lost.lines[:_LINES_SHOWN]
    more = f" and {lost.count - len(shown):,} more" if lost.count > len(shown) else ""
    return f"line{'s' if lost.count > 1 else ''} {', '.join(map(str, shown))}{more}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
