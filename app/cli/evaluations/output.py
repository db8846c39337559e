"""Evaluations as tables and fields."""

from app.cli.evaluations.views import (
    EstimateView,
    EvaluationAnswerView,
    EvaluationView,
    GraderResultView,
    GradeView,
    ModelResultView,
    ResultsView,
    SideBySideView,
)
from app.cli.output import age_text, clean, note, show_fields, show_table, state_text
from app.cli.work import place_text

_MAX_TEXT = 2000


def show_list(found: list[EvaluationView]) -> None:
    """Write a table of evaluations."""
    rows = [
        (
            one.id,
            one.name,
            state_text(one.state, one.progress if one.state == "running" else None),
            "" if one.rows is None else str(one.rows),
            ", ".join(one.labels),
            age_text(one.created_at),
        )
        for one in found
    ]
    show_table(
        ("ID", "NAME", "STATE", "ROWS", "MODELS", "ASKED FOR"),
        rows,
        empty="There is no evaluation yet: `tunesmith evaluations create` makes one.",
    )


def show_evaluation(found: EvaluationView, results: ResultsView | None) -> None:
    """Write the fields of an evaluation, and a table of its results so far."""
    running = f"{found.phase} {found.progress}".strip() if found.phase else None
    source = found.spec.get("held_out_of") or found.spec.get("dataset")
    show_fields(
        [
            ("id", found.id),
            ("name", found.name if found.name != found.id else None),
            ("state", state_text(found.state, running)),
            ("in line", place_text(found.queue_position, found.spec)),
            ("waits for", found.waiting_for),
            ("rows", None if found.rows is None else f"{found.rows}{f' of {source}' if source else ''}"),
            ("left out", str(found.left_out) if found.left_out else None),
            ("failed answers", str(found.failed) if found.failed else None),
            ("error", f"{found.error.message} ({found.error.code})" if found.error else None),
            ("asked for", f"{found.created_at.astimezone():%Y-%m-%d %H:%M}"),
        ]
    )
    if results is not None and results.rows:
        show_results(results)


def show_results(results: ResultsView) -> None:
    """Write a line for each model and grader; intervals are of 95%."""
    rows = [
        (
            model.model + (" (baseline)" if model.model == results.baseline else ""),
            result.grader,
            _estimate(result.mean),
            _pass_rate(result),
            _comparison(result),
            str(result.errors) if result.errors else "",
        )
        for model in results.models
        for result in model.graders
    ]
    head = ("MODEL", "GRADER", "MEAN", "PASSED", "WON/TIED/LOST", "ERRORS")
    show_table(head, rows or [_ungraded(model) for model in results.models], empty="")
    if results.disagreements:
        note(f"The models differ on {results.disagreements} of {results.rows} rows.", "dim")


def show_row(row: SideBySideView) -> None:
    """Write one row: its prompt, its reference, and every model's answer with its scores."""
    show_fields(
        [
            ("row", f"{row.number}" + (f", line {row.line} of the dataset" if row.line else "")),
            ("prompt", _cut(row.prompt)),
            ("reference", _cut(row.reference) if row.reference else None),
            *((answer.model, _answer(answer)) for answer in row.answers),
            ("", " "),
        ]
    )


def _ungraded(model: ModelResultView) -> tuple[str, ...]:
    return (model.model, "", "", f"{model.answers} answers", "", str(model.errors) if model.errors else "")


def _estimate(found: EstimateView | None) -> str:
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})" if found else ""


def _pass_rate(result: GraderResultView) -> str:
    rate = result.pass_rate
    return f"{rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})" if rate else ""


def _comparison(result: GraderResultView) -> str:
    against = result.against_baseline
    return f"{against.wins}/{against.ties}/{against.losses}" if against else ""


def _answer(answer: EvaluationAnswerView) -> str:
    if answer.error is not None:
        return f"error: {answer.error.message}"
    calls = [f"{call.name}({call.arguments})" for call in answer.tool_calls]
    grades = [f"{name}: {_grade(grade)}" for name, grade in (answer.grades or {}).items()]
    return _cut("\n".join(part for part in (answer.text, *calls, ", ".join(grades)) if part))


def _grade(grade: GradeView) -> str:
    if grade.score is None:
        return f"no score, {grade.error.message}" if grade.error else "no score"
    passed = "" if grade.passed is None else " passed" if grade.passed else " failed"
    return f"{grade.score:.3g}{passed}"


def _cut(text: str) -> str:
    shown = clean(text)
    return shown if len(shown) <= _MAX_TEXT else shown[: _MAX_TEXT - 1] + "…"
