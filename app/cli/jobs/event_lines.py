"""Renders a job's events as lines of text and its losses as a sparkline. Pure."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from app.cli.jobs.views import EventView
from app.cli.output import clean, duration_text
from app.cli.words import in_commands

_BARS = "▁▂▃▄▅▆▇█"
TEXT_COLUMN = 22
# Letters of a sample's prompt, and of its answer.
_SHOWN = 60
_INDENT = "\n" + " " * TEXT_COLUMN


def render(event: EventView) -> str:
    """One event as a line: its local time, its type, its text."""
    at = event.at.astimezone()
    return f"{at:%H:%M:%S}  {event.type:<10}  {clean(describe(event)).replace(chr(10), _INDENT)}"


def describe(event: EventView) -> str:
    """The text of an event, without its time and type."""
    found = event.data
    match event.type:
        case "metrics":
            return _metrics_text(found)
        case "eval":
            text = f"step {found['step']}  epoch {found['epoch']:.2f}  eval loss {loss_text(found['loss'])}"
            return text + _optional("  accuracy {:.3f}", found.get("token_accuracy")) + _rewards_text(found)
        case "samples":
            return "\n".join([f"step {found['step']}  sample answers", *_answer_lines(found["answers"])])
        case "final_eval":
            losses = losses_text(found["base_loss"], found["adapter_loss"])
            return f"{len(found['rows'])} rows held out  {losses}"
        case "checkpoint":
            return f"step {found['step']} saved"
        case "state":
            return _state_text(found)
        case "warning":
            return f"{in_commands(found['message'])} ({found['code']})"
    return str(found.get("message", found))


def loss_text(loss: float | None) -> str:
    """A loss; null in JSON means that it was not a number."""
    return "nan" if loss is None else f"{loss:.4f}"


def losses_text(base: float | None, adapter: float | None) -> str:
    """The losses of base model and adapter on the same rows."""
    return f"loss of the base model {loss_text(base)}, with the adapter {loss_text(adapter)}"


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """The finite values as bars of height 1 to 8; more than `width` values are averaged in groups."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) > width:
        edges = [round(place * len(known) / width) for place in range(width + 1)]
        groups = [known[start:end] for start, end in pairwise(edges)]
        known = [sum(group) / len(group) for group in groups]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    places = [round((value - low) / span * (len(_BARS) - 1)) if span else 0 for value in known]
    return "".join(_BARS[place] for place in places)


def _metrics_text(found: dict[str, Any]) -> str:
    width = len(str(found["total_steps"]))
    text = f"step {found['step']:>{width}}/{found['total_steps']}  epoch {found['epoch']:.2f}"
    text += f"  loss {loss_text(found['loss'])}"
    text += _rewards_text(found)
    text += _optional("  lr {:.1e}", found.get("learning_rate"))
    text += _optional("  grad {:.3f}", found.get("grad_norm"))
    text += _optional("  {:,.0f} tokens/s", found.get("tokens_per_second"))
    memory = found.get("memory_bytes")
    text += _optional("  {:.2f} GiB", memory / 2**30 if memory else None)
    eta = found.get("eta_seconds")
    return text + (f"  {duration_text(eta)} left" if eta is not None else "")


def _rewards_text(found: dict[str, Any]) -> str:
    """Of a job that learns from preferences: the margin of rewards, and how many of them are right."""
    margin = _optional("  margin {:.3f}", found.get("reward_margin"))
    return margin + _optional("  right {:.0%}", found.get("reward_accuracy"))


def _answer_lines(answers: list[dict[str, Any]]) -> list[str]:
    return [f"{_one_line(one['prompt'])} → {_one_line(one['answer'])}" for one in answers]


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _SHOWN else joined[: _SHOWN - 1] + "…"


def _state_text(found: dict[str, Any]) -> str:
    state, phase = found["state"], found.get("phase")
    parts = [f"{state}: {phase}" if phase else state]
    if found.get("attempt"):
        parts.append(f"attempt {found['attempt']}")
    if found.get("adapter"):
        parts.append(f"adapter {found['adapter']}")
    if found.get("reason"):
        parts.append(found["reason"])
    if found.get("error_code"):
        parts.append(f"({found['error_code']})")
    return "  ".join(parts)


def _optional(template: str, value: float | None) -> str:
    return "" if value is None else template.format(value)
