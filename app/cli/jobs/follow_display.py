"""Displays a job while it is followed: a progress bar on a terminal, a line an event in a pipe."""

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.cli.jobs import event_lines
from app.cli.jobs.event_source import Interrupted
from app.cli.jobs.views import EventView, JobView
from app.cli.output import clean, console, duration_text, error_console, state_text

_SPARK_WIDTH = 30
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Display(Protocol):
    """Shows events as they arrive."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, event: EventView | Interrupted) -> None:
        """Show an event or an interruption."""
        ...


def make_display(job: JobView, *, on_stderr: bool) -> Display:
    """The display for a terminal or a pipe. `on_stderr` leaves standard output to a result in JSON."""
    screen = error_console() if on_stderr else console()
    return TerminalDisplay(job, screen) if screen.is_terminal else LineDisplay(on_stderr=on_stderr)


class LineDisplay:
    """A line an event, without control codes."""

    def __init__(self, *, on_stderr: bool) -> None:
        self._target = sys.stderr if on_stderr else sys.stdout
        self._is_cut_off = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._target.flush()

    def show(self, event: EventView | Interrupted) -> None:
        """Write an event, unbuffered; of interruptions in a row the first one alone."""
        if isinstance(event, Interrupted):
            if not self._is_cut_off:
                sys.stderr.write(f"Connection lost: {clean(event.reason)} Trying again.\n")
            self._is_cut_off = True
            return
        self._is_cut_off = False
        self._target.write(event_lines.render(event) + "\n")
        self._target.flush()


@dataclass
class _Status:
    """The job's state and figures as of the last event."""

    state: str
    phase: str | None = None
    attempt: int | None = None
    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    losses: dict[int, float | None] = field(default_factory=dict)
    has_evaluated: bool = False
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    # When the job will be done, by this machine's steady clock.
    ends_at: float | None = None
    trouble: str | None = None


class TerminalDisplay:
    """A few lines that are redrawn in place; warnings, logs and evaluations scroll above them."""

    def __init__(self, job: JobView, screen: Console) -> None:
        self._job = job
        self._status = _Status(job.state, job.phase)
        self._screen = screen
        self._live = Live(get_renderable=self._draw, console=screen, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.ends_at = None
        self._live.stop()

    def show(self, event: EventView | Interrupted) -> None:
        """Update the status, which is redrawn; write logs, warnings, evaluations and samples above it."""
        status = self._status
        if isinstance(event, Interrupted):
            status.trouble = clean(event.reason)
            return
        status.trouble = None
        match event.type:
            case "metrics":
                self._apply_metrics(event)
            case "eval":
                status.has_evaluated, status.eval_loss = True, event.data["loss"]
            case "state":
                self._apply_state(event)
        if event.type in ("log", "warning", "eval", "samples", "final_eval") or event.level != "info":
            style = {"warning": "yellow", "error": "red"}.get(event.level, "")
            line = event_lines.render(event)
            grid = Table.grid()  # a wrapped text continues under its own column
            grid.add_column(no_wrap=True)
            grid.add_column()
            grid.add_row(line[: event_lines.TEXT_COLUMN], Text(line[event_lines.TEXT_COLUMN :]))
            self._screen.print(grid, style=style)

    def _apply_metrics(self, event: EventView) -> None:
        status, found = self._status, event.data
        status.step, status.total_steps, status.epoch = found["step"], found["total_steps"], found["epoch"]
        # A resumed attempt repeats steps after its checkpoint: the last value counts.
        status.losses = {step: loss for step, loss in status.losses.items() if step < found["step"]}
        status.losses[found["step"]] = found["loss"]
        status.tokens_per_second = found.get("tokens_per_second")
        eta = found.get("eta_seconds")
        age = max(0.0, time.time() - event.at.timestamp())
        status.ends_at = time.monotonic() + eta - age if eta is not None else None

    def _apply_state(self, event: EventView) -> None:
        status = self._status
        status.state, status.phase = event.data["state"], event.data.get("phase")
        status.attempt = event.data.get("attempt") or status.attempt
        if status.state != "running" or status.phase in ("saving", "verifying"):
            status.ends_at = None

    def _draw(self) -> Group:
        lines: list[Text | Table] = [self._draw_head(), self._draw_bar()]
        if self._status.losses:
            lines.append(self._draw_figures())
        if self._status.trouble:
            trouble = f"Connection lost, trying again: {self._status.trouble}"
            lines.append(Text(trouble, style="yellow", overflow="fold"))
        return Group(*lines)

    def _draw_head(self) -> Text:
        status, name = self._status, clean(self._job.name)
        is_busy = status.state in ("queued", "running")
        mark = _SPINNER[int(time.monotonic() * 8) % len(_SPINNER)] if is_busy else "•"
        head = Text.assemble(f"{mark} ", (name, "bold"), "  ")
        head.append_text(state_text(status.state, status.phase))
        if status.attempt and status.attempt > 1:
            head.append(f"  attempt {status.attempt}")
        if status.state == "paused":
            head.append(f"  `tunesmith jobs resume {self._job.id}` goes on", style="dim")
        return head

    def _draw_bar(self) -> Table:
        status = self._status
        total = status.total_steps
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(justify="right", no_wrap=True)
        bar = ProgressBar(
            total=total or 1, completed=status.step, complete_style="cyan", finished_style="green"
        )
        figures = (
            f"{status.step}/{total}  {status.step / total:.0%}" if total else "waiting for the first step"
        )
        grid.add_row(bar, Text(figures))
        return grid

    def _draw_figures(self) -> Text:
        status = self._status
        losses = [status.losses[step] for step in sorted(status.losses)]
        line = Text.assemble("loss ", (event_lines.loss_text(losses[-1]), "bold"), " ")
        rest = f"  eval {event_lines.loss_text(status.eval_loss)}" if status.has_evaluated else ""
        rest += f"  epoch {status.epoch:.2f}"
        if status.tokens_per_second:
            rest += f"  {status.tokens_per_second:,.0f} tok/s"
        if status.ends_at is not None:
            rest += f"  {duration_text(status.ends_at - time.monotonic())} left"
        free_width = self._screen.width - len(line) - len(rest)
        line.append(event_lines.sparkline(losses, min(max(free_width, 1), _SPARK_WIDTH)), style="cyan")
        return line.append(rest)
