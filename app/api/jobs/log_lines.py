"""Renders events as aligned lines of text for a terminal. Pure."""

from app.core.jobs.events import (
    Checkpoint,
    Evaluation,
    Event,
    FinalEvaluation,
    Log,
    Metrics,
    PreferenceFigures,
    Samples,
    StateChange,
    Warn,
)

# Letters of a sample's prompt and of its answer that a line of the log has.
_SHOWN = 60


def render(event: Event) -> str:
    """One event as one line, with its time in UTC."""
    text = _text(event).replace("\n", "\n" + " " * 33)
    return f"{event.at:%Y-%m-%d %H:%M:%S}  {event.type:<10}  {text}\n"


def _text(event: Event) -> str:
    match event.data:
        case Log(message=message):
            return message
        case Warn(code=code, message=message):
            return f"{message} ({code})"
        case Checkpoint(step=step):
            return f"step {step:>6}  saved"
        case StateChange() as change:
            return _state_text(change)
        case Evaluation() as found:
            return (
                f"step {found.step:>6}  epoch {found.epoch:6.2f}  eval loss {found.loss:.4f}"
                + _optional("  accuracy {:.3f}", found.token_accuracy)
                + _rewards_text(found)
            )
        case Metrics() as found:
            return _metrics_text(found)
        case FinalEvaluation() as found:
            return (
                f"step {found.step:>6}  {len(found.rows)} rows held out  loss of the base model "
                f"{found.base_loss:.4f}, with the adapter {found.adapter_loss:.4f}"
            )
        case Samples() as found:
            return "\n".join([f"step {found.step:>6}  sample answers", *_answers(found)])


def _answers(found: Samples) -> list[str]:
    return [f"{_one_line(one.prompt)} → {_one_line(one.answer)}" for one in found.answers]


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _SHOWN else joined[: _SHOWN - 1] + "…"


def _state_text(change: StateChange) -> str:
    parts: list[str] = [change.state if change.phase is None else f"{change.state}: {change.phase}"]
    if change.attempt is not None:
        parts.append(f"attempt {change.attempt}")
    if change.adapter:
        parts.append(f"adapter {change.adapter}")
    if change.reason:
        parts.append(change.reason)
    if change.error_code:
        parts.append(f"({change.error_code})")
    return "  ".join(parts)


def _metrics_text(found: Metrics) -> str:
    width = len(str(found.total_steps))
    text = f"step {found.step:>{width}}/{found.total_steps}  epoch {found.epoch:6.2f}  loss {found.loss:8.4f}"
    text += _rewards_text(found)
    text += _optional("  lr {:.2e}", found.learning_rate)
    text += _optional("  grad {:7.3f}", found.grad_norm)
    text += _optional("  {:7.0f} tokens/s", found.tokens_per_second)
    memory_gib = found.memory_bytes / 2**30 if found.memory_bytes is not None else None
    text += _optional("  {:6.2f} GiB", memory_gib)
    return text + (f"  {_duration(found.eta_seconds)} left" if found.eta_seconds is not None else "")


def _rewards_text(found: PreferenceFigures) -> str:
    return _optional("  margin {:7.3f}", found.reward_margin) + _optional(
        "  right {:4.0%}", found.reward_accuracy
    )


def _optional(template: str, value: float | None) -> str:
    return "" if value is None else template.format(value)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
