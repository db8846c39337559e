"""Writes jobs, loss curves and preflights for people."""

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from app.cli.jobs import destinations
from app.cli.jobs.event_lines import loss_text, losses_text, sparkline
from app.cli.jobs.views import (
    AttemptView,
    CheckpointView,
    FinalEvaluationView,
    JobView,
    LossPointView,
    PreflightView,
    SamplesView,
)
from app.cli.output import (
    age_text,
    clean,
    console,
    duration_text,
    note,
    show_fields,
    show_table,
    size_text,
    state_text,
)
from app.cli.words import in_commands
from app.cli.work import place_text

_BAR_WIDTH = 40
# Rows of the final evaluation that are shown of a job.
_ROWS_SHOWN = 3


def show_list(jobs: Sequence[JobView]) -> None:
    """Write a table of jobs, one a line."""
    rows = [
        (
            job.id,
            job.name if job.name != job.id else "",
            state_text(job.state),
            f"number {job.queue_position}" if job.queue_position else _steps(job),
            loss_text(job.progress.loss) if job.progress.loss is not None else "",
            age_text(job.created_at),
        )
        for job in jobs
    ]
    show_table(
        ("ID", "NAME", "STATE", "STEPS", "LOSS", "SUBMITTED"),
        rows,
        empty="There is no such job: `tunesmith jobs submit FILE` makes one.",
    )


def show(job: JobView, curve: Sequence[LossPointView]) -> None:
    """Write everything about one job."""
    training = [point.loss for point in curve if point.kind == "train"]
    evaluation = [point.loss for point in curve if point.kind == "eval"]
    eta = job.progress.eta_seconds
    show_fields(
        [
            ("id", job.id),
            ("name", job.name),
            ("state", state_text(job.state, job.phase)),
            ("in line", place_text(job.queue_position, job.spec)),
            ("waits for", job.waiting_for),
            ("requested", _requested_change(job)),
            ("base model", str(job.spec["base_model"])),
            ("dataset", str(job.spec["dataset"])),
            ("method", job.spec.get("method") if job.spec.get("method") != "sft" else None),
            ("steps", _steps(job) or None),
            ("loss", f"{loss_text(training[-1])}  {sparkline(training)}" if training else None),
            ("eval loss", f"{loss_text(evaluation[-1])}  {sparkline(evaluation)}" if evaluation else None),
            ("rewards", _rewards_text(curve)),
            ("held out", _evaluation_text(job.final_evaluation)),
            ("time left", duration_text(eta) if eta is not None and job.state == "running" else None),
            ("checkpoint", _checkpoint_text(job.checkpoint)),
            ("adapter", job.adapter),
            *destinations.list_fields(job),
            ("submitted", _moment(job.created_at)),
            ("started", _moment(job.started_at)),
            ("ended", _moment(job.finished_at)),
            *((f"note: {key}", str(value)) for key, value in (job.spec.get("metadata") or {}).items()),
            *((f"attempt {attempt.number}", _attempt_text(attempt)) for attempt in job.attempts),
        ]
    )
    _show_error(job)
    destinations.show_error(job)
    if job.final_evaluation:
        _show_evaluated_rows(job, job.final_evaluation)


def show_end(job: JobView, adapter: str | None) -> None:
    """Write how a followed job ended. `adapter` is the name of its finished adapter."""
    screen = console()
    took = ""
    if job.started_at and job.finished_at:
        took = f" in {duration_text((job.finished_at - job.started_at).total_seconds())}"
    screen.print(Text.assemble((clean(job.name), "bold"), " ", state_text(job.state), took))
    _show_error(job)
    if adapter:
        screen.print(Text.assemble("Talk to it: ", (f"tunesmith chat {adapter}", "bold")))
    elif job.state in ("failed", "cancelled"):
        note(f"`tunesmith jobs retry {job.id}` goes on from its last checkpoint.", "dim")
    destinations.show_end(job)


def change_text(job: JobView) -> str:
    """The state of a job after a change was requested."""
    requested = _requested_change(job)
    return f"{job.state}, {requested}" if requested else job.state


def show_curve(points: Sequence[LossPointView]) -> None:
    """Write a loss curve as a sparkline and as a table."""
    training = [point.loss for point in points if point.kind == "train"]
    if training:
        note(f"loss {loss_text(training[0])} {sparkline(training, 60)} {loss_text(training[-1])}")
    has_rewards = any(point.reward_accuracy is not None for point in points)
    rows = [
        (
            str(point.step),
            f"{point.epoch:.2f}",
            point.kind,
            loss_text(point.loss),
            f"{point.learning_rate:.1e}" if point.learning_rate is not None else "",
            f"{point.grad_norm:.3f}" if point.grad_norm is not None else "",
            f"{point.tokens_per_second:,.0f}" if point.tokens_per_second else "",
            *(_rewards(point) if has_rewards else ()),
        )
        for point in points
    ]
    names = ("STEP", "EPOCH", "KIND", "LOSS", "RATE", "GRAD", "TOK/S")
    show_table(
        (*names, *(("MARGIN", "RIGHT") if has_rewards else ())), rows, empty="No step has been logged yet."
    )


def _rewards_text(curve: Sequence[LossPointView]) -> str | None:
    """Of a job that learns from preferences: the margins, and how many rewards are the right way."""
    points = [one for one in curve if one.kind == "train" and one.reward_margin is not None]
    if not points:
        return None
    margin, right = _rewards(points[-1])
    return f"margin {margin}, {right} right  {sparkline([one.reward_margin for one in points])}"


def _rewards(point: LossPointView) -> tuple[str, str]:
    margin, accuracy = point.reward_margin, point.reward_accuracy
    return (
        f"{margin:.3f}" if margin is not None else "",
        f"{accuracy:.0%}" if accuracy is not None else "",
    )


def show_samples(found: Sequence[SamplesView], *, every_step: bool) -> None:
    """Write the answers to each prompt by step: the first and the last ones, or all."""
    if not found:
        return note("No sample answers: training.sample_prompts, or rows to evaluate on, make some.")
    shown = found if every_step or len(found) < 3 else [found[0], found[-1]]
    for place, first in enumerate(shown[0].answers):
        console().print(Text(clean(first.prompt), style="bold"))
        answers = [(one, one.answers[place].answer) for one in shown if place < len(one.answers)]
        show_fields(
            [("expected", first.expected), *((_moment_of(one), clean(answer)) for one, answer in answers)]
        )


def _evaluation_text(found: FinalEvaluationView | None) -> str | None:
    return losses_text(found.base_loss, found.adapter_loss) if found else None


def _show_evaluated_rows(job: JobView, found: FinalEvaluationView) -> None:
    """Write the first rows of an evaluation: prompt, expected answer, answers of base model and adapter."""
    for row in found.rows[:_ROWS_SHOWN]:
        console().print(Text(clean(row.prompt), style="bold"))
        show_fields(
            [
                ("expected", clean(row.expected)),
                ("base model", _side_text(row.base_answer, row.base_loss)),
                ("adapter", _side_text(row.adapter_answer, row.adapter_loss)),
            ]
        )
    if len(found.rows) > _ROWS_SHOWN:
        note(f"`tunesmith jobs show {job.id} --json` has all {len(found.rows)} rows.", "dim")


def _side_text(answer: str | None, loss: float | None) -> str:
    return f"{clean(answer) if answer is not None else '(time was up)'}  (loss {loss_text(loss)})"


def _moment_of(samples: SamplesView) -> str:
    if samples.is_final:
        return f"adapter, step {samples.step}"
    return f"step {samples.step}" if samples.step else "before"


def show_preflight(found: PreflightView) -> None:
    """Write what a job would do and need."""
    measured = "as the last one went" if found.time["basis"] == "measured" else "a guess"
    seconds = sum(found.time.get(name, 0) for name in ("seconds", "sample_seconds", "reference_seconds"))
    share = found.memory["total"] / max(1, found.device["free_bytes"])
    truncated, dropped = found.truncated["count"], found.dropped["count"]
    show_fields(
        [
            ("rows", f"{found.training_rows:,} to train on, {found.evaluation_rows:,} to evaluate on"),
            ("sampled", f"{found.sampled_rows:,} of them were read" if found.sampled_rows else None),
            (
                "tokens",
                f"{found.tokens['total']:,} an epoch, {found.trained_token_share:.0%} learned from; "
                f"a row has {found.tokens['mean']:.0f}, at most {found.tokens['max']:,}",
            ),
            (
                "cut rows",
                f"{truncated:,} of more than {found.chosen['max_seq_length']:,}" if truncated else None,
            ),
            ("left out", f"{dropped:,} rows without a token to learn from" if dropped else None),
            ("steps", f"{found.optimizer_steps:,}"),
            ("time", f"about {duration_text(seconds)} ({measured})"),
            ("device", str(found.device["name"])),
            ("GPUs", _strategy_text(found)),
            ("memory", _memory_bar(share, fits=found.fits)),
            ("", f"{size_text(found.memory['total'])} of {size_text(found.device['free_bytes'])} free"),
            (
                "disk",
                f"{size_text(found.disk['checkpoints'] + found.disk['adapter'])} of "
                f"{size_text(found.disk['free'])} free",
            ),
        ]
    )
    for warning in found.warnings:
        note(f"Warning: {warning.message}", "yellow")
    if not found.fits:
        note(
            "It does not fit: a smaller max_seq_length or batch, or gradient_checkpointing, needs less.",
            "red",
        )


def _strategy_text(found: PreflightView) -> str | None:
    strategy, reason = found.chosen.get("strategy"), found.chosen.get("strategy_reason")
    if strategy is None:
        return None
    does = "they divide the base model" if strategy == "fsdp" else "each holds the whole base model"
    return f"{does} ({strategy}): {reason}" if reason else f"{does} ({strategy})"


def _memory_bar(share: float, *, fits: bool) -> Text:
    filled = min(_BAR_WIDTH, max(1, round(share * _BAR_WIDTH)))
    bar = Text("█" * filled, style="green" if fits else "red")
    return bar.append("░" * (_BAR_WIDTH - filled), style="dim").append(f" {share:.0%}")


def _steps(job: JobView) -> str:
    total = job.progress.total_steps
    return f"{job.progress.step}/{total}" if total else ""


def _requested_change(job: JobView) -> str | None:
    if job.has_ended:
        return None
    if job.cancel_requested_at:
        return "to be cancelled after its step"
    return "to be paused after its step" if job.pause_requested_at else None


def _moment(moment: datetime | None) -> str | None:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else None


def _checkpoint_text(checkpoint: CheckpointView | None) -> str | None:
    if checkpoint is None:
        return None
    stored = "none" if checkpoint.stored_step is None else f"step {checkpoint.stored_step}"
    return f"step {checkpoint.step}, on {clean(checkpoint.host)}; in the artifact store: {stored}"


def _attempt_text(attempt: AttemptView) -> str:
    ended = attempt.exit_reason.replace("_", " ") if attempt.exit_reason else "goes on"
    return f"{ended}, by {attempt.worker} since {_moment(attempt.started_at)}"


def _show_error(job: JobView) -> None:
    if job.error is None:
        return
    note(f"{in_commands(job.error.message)} ({job.error.code})", "red")
    if job.error.hint:
        note(f"Hint: {in_commands(job.error.hint)}", "yellow")
