"""What became of a family: a verdict for each stage, as JSON and as a table in Markdown."""

from collections.abc import Callable, Iterable
from typing import Literal

from pydantic import BaseModel

from app.core.engine.messages import ServingPath

Width = Literal["4 bits", "unquantized"]
WIDTHS: tuple[Width, ...] = ("4 bits", "unquantized")
_MAX_REASON = 300


class Verdict(BaseModel):
    """Whether a stage works, and why not, or how. `works` is None where the stage was not reached."""

    works: bool | None = None
    reason: str = ""

    @classmethod
    def no(cls, reason: str) -> "Verdict":
        """The verdict on a stage that fails, its reason on one line."""
        return cls(works=False, reason=" ".join(reason.split())[:_MAX_REASON])


class Run(BaseModel):
    """One job over a base model in 4 bits or unquantized, and its adapter."""

    preflight: Verdict = Verdict()
    trained: Verdict = Verdict()  # both steps, and the adapter is saved
    verified: Verdict = Verdict()
    served: Verdict = Verdict()
    equal_to_peft: Verdict = Verdict()
    path: ServingPath | None = None  # of the engine, that served the adapter
    announced_path: ServingPath | None = None  # by preflight
    optimizations: str = ""
    warnings: list[str] = []  # of the job, by code
    notices: list[str] = []  # of preflight, by code

    @property
    def contradiction(self) -> str | None:
        """What preflight said otherwise than the job and the engine did; None: it said the same."""
        finished = self.trained.works and self.verified.works
        if self.preflight.works and not finished:
            return "preflight lets a job pass that fails"
        if self.preflight.works is False and finished:
            return "preflight refuses a job that works"
        if finished and self.served.works is False:
            return "preflight does not say that the adapter can't be served"
        if self.path != self.announced_path and self.served.works:
            return f"preflight says that the {self.announced_path} path serves, and the {self.path} path does"
        return None


class FamilyResult(BaseModel):
    """The runs of one family. `failure`: why there are none, or not all of their verdicts."""

    name: str
    model_type: str
    runs: dict[Width, Run] = {}
    failure: str | None = None

    @property
    def says_no(self) -> bool:
        """Whether any stage failed or was not reached, or preflight said otherwise."""
        return bool(self.failure) or any(
            verdict.works is not True or run.contradiction
            for run in self.runs.values()
            for verdict in _verdicts(run)
        )


def _served(run: Run) -> str:
    return run.path.value if run.served.works and run.path else _WORDS[run.served.works]


_WORDS = {None: "-", True: "yes", False: "**no**"}
_COLUMNS: dict[str, Callable[[Run], str]] = {
    "Preflight": lambda run: _WORDS[run.preflight.works],
    "Trains": lambda run: _WORDS[run.trained.works],
    "Verified": lambda run: _WORDS[run.verified.works],
    "Served": _served,
    "Equal to PEFT": lambda run: _WORDS[run.equal_to_peft.works],
}


def make_table(results: Iterable[FamilyResult]) -> str:
    """A table in Markdown with one row for each family. Wherever it says no, the last column says why."""
    lines = [
        "| Family | `model_type` | " + " | ".join(_COLUMNS) + " | Why not |",
        "| --- " * (len(_COLUMNS) + 3) + "|",
    ]
    for result in results:
        cells = [_cell(result, column) for column in _COLUMNS.values()]
        why = _escape("; ".join(_reasons(result)))
        lines.append(f"| {result.name} | `{result.model_type}` | {' | '.join(cells)} | {why} |")
    return "\n".join(lines) + "\n"


def _cell(result: FamilyResult, column: Callable[[Run], str]) -> str:
    """`yes` and `no` for both widths, or for each where they differ; a dash for what was not reached."""
    said = {width: column(run) for width, run in result.runs.items()}
    if len(set(said.values())) <= 1:
        return next(iter(said.values()), "-")
    return ", ".join(f"{width}: {word}" for width, word in said.items())


def _reasons(result: FamilyResult) -> list[str]:
    """Each reason once, with the widths that it is true of where that is not all of them."""
    found: dict[str, list[Width]] = {}
    for width, run in result.runs.items():
        failed = [verdict.reason for verdict in _verdicts(run) if verdict.works is False]
        for reason in dict.fromkeys([*failed, *([run.contradiction] if run.contradiction else [])]):
            found.setdefault(reason, []).append(width)
    reasons = [
        reason if len(widths) == len(result.runs) else f"{', '.join(widths)}: {reason}"
        for reason, widths in found.items()
    ]
    return [*([result.failure] if result.failure else []), *reasons]


def _verdicts(run: Run) -> list[Verdict]:
    return [run.preflight, run.trained, run.verified, run.served, run.equal_to_peft]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
