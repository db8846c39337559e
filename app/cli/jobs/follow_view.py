"""What a person sees of a job while it works: on a terminal a bar that moves, in a pipe a line an event."""

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
from app.cli.output import clean, console, duration_text, error_console, state_text
from app.cli.shapes import Event, Job

_SPARK_WIDTH = 30
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class View(Protocol):
    """Shows events."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, event: Event | Interrupted) -> None:
        """Show what came."""
        ...


def make_view(job: Job, *, on_stderr: bool) -> View:
    """The view that fits where it goes. Standard output is left to the answer where that is JSON."""
    screen = error_console() if on_stderr else console()
    return TerminalView(job, screen) if screen.is_terminal else LineView(on_stderr=on_stderr)


class LineView:
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

    def show(self, event: Event | Interrupted) -> None:
        """Write it at once; a break is said once."""
        if isinstance(event, Interrupted):
            if not self._is_cut_off:
                sys.stderr.write(f"Connection lost: {clean(event.reason)} Trying again.\n")
            self._is_cut_off = True
            return
        self._is_cut_off = False
        self._target.write(event_lines.render(event) + "\n")
        self._target.flush()


@dataclass
class _Seen:
    """What the events have said so far."""

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


class TerminalView:
    """A few lines that are redrawn in place; warnings, logs and checkpoints scroll by above them."""

    def __init__(self, job: Job, screen: Console) -> None:
        self._job = job
        self._seen = _Seen(job.state, job.phase)
        self._screen = screen
        self._live = Live(get_renderable=self._draw, console=screen, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen.ends_at = None
        self._live.stop()

    def show(self, event: Event | Interrupted) -> None:
        """Take it in; the screen follows."""
        seen = self._seen
        if isinstance(event, Interrupted):
            seen.trouble = clean(event.reason)
            return
        seen.trouble = None
        match event.type:
            case "metrics":
                self._take_metrics(event)
            case "eval":
                seen.has_evaluated, seen.eval_loss = True, event.data["loss"]
            case "state":
                self._take_state(event)
        if event.type in ("log", "warning", "eval") or event.level != "info":
            style = {"warning": "yellow", "error": "red"}.get(event.level, "")
            line = event_lines.render(event)
            grid = Table.grid()  # so that what wraps stands under what it belongs to
            grid.add_column(no_wrap=True)
            grid.add_column()
            grid.add_row(line[: event_lines.TEXT_COLUMN], Text(line[event_lines.TEXT_COLUMN :]))
            self._screen.print(grid, style=style)

    def _take_metrics(self, event: Event) -> None:
        seen, found = self._seen, event.data
        seen.step, seen.total_steps, seen.epoch = found["step"], found["total_steps"], found["epoch"]
        # A resumed attempt repeats steps after its checkpoint: the last word counts.
        seen.losses = {step: loss for step, loss in seen.losses.items() if step < found["step"]}
        seen.losses[found["step"]] = found["loss"]
        seen.tokens_per_second = found.get("tokens_per_second")
        eta = found.get("eta_seconds")
        age = max(0.0, time.time() - event.at.timestamp())
        seen.ends_at = time.monotonic() + eta - age if eta is not None else None

    def _take_state(self, event: Event) -> None:
        seen = self._seen
        seen.state, seen.phase = event.data["state"], event.data.get("phase")
        seen.attempt = event.data.get("attempt") or seen.attempt
        if seen.state != "running" or seen.phase in ("saving", "verifying"):
            seen.ends_at = None

    def _draw(self) -> Group:
        lines: list[Text | Table] = [self._draw_head(), self._draw_bar()]
        if self._seen.losses:
            lines.append(self._draw_figures())
        if self._seen.trouble:
            trouble = f"Connection lost, trying again: {self._seen.trouble}"
            lines.append(_one_line(Text(trouble, style="yellow")))
        return Group(*lines)

    def _draw_head(self) -> Text:
        seen, name = self._seen, clean(self._job.name)
        is_busy = seen.state in ("queued", "running")
        mark = _SPINNER[int(time.monotonic() * 8) % len(_SPINNER)] if is_busy else "•"
        head = Text.assemble(f"{mark} ", (name, "bold"), "  ")
        head.append_text(state_text(seen.state, seen.phase))
        if seen.attempt and seen.attempt > 1:
            head.append(f"  attempt {seen.attempt}")
        if seen.state == "paused":
            head.append(f"  `tunesmith jobs resume {self._job.id}` goes on", style="dim")
        return _one_line(head)

    def _draw_bar(self) -> Table:
        seen = self._seen
        total = seen.total_steps
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(justify="right", no_wrap=True)
        bar = ProgressBar(
            total=total or 1, completed=seen.step, complete_style="cyan", finished_style="green"
        )
        figures = f"{seen.step}/{total}  {seen.step / total:.0%}" if total else "waiting for the first step"
        grid.add_row(bar, Text(figures))
        return grid

    def _draw_figures(self) -> Text:
        seen = self._seen
        losses = [seen.losses[step] for step in sorted(seen.losses)]
        line = Text.assemble("loss ", (event_lines.loss_text(losses[-1]), "bold"), " ")
        rest = f"  eval {event_lines.loss_text(seen.eval_loss)}" if seen.has_evaluated else ""
        rest += f"  epoch {seen.epoch:.2f}"
        if seen.tokens_per_second:
            rest += f"  {seen.tokens_per_second:,.0f} tok/s"
        if seen.ends_at is not None:
            rest += f"  {duration_text(seen.ends_at - time.monotonic())} left"
        room = self._screen.width - len(line) - len(rest)
        line.append(event_lines.sparkline(losses, min(max(room, 1), _SPARK_WIDTH)), style="cyan")
        return _one_line(line.append(rest))


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
