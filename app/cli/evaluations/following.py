"""Waits for the end of an evaluation, and shows it."""

from typing import Any

from app.cli import work
from app.cli.connection.client import Client
from app.cli.evaluations import output
from app.cli.evaluations.views import EvaluationView, ResultsView
from app.cli.output import print_json

# How long an API that restarts is waited for.
_PATIENCE_SECONDS = 600.0


def wait_for_end(client: Client, answer: Any) -> Any:
    """Wait until the evaluation has ended, also while the API restarts."""
    path = f"/evaluations/{answer['id']}"
    return work.wait_for_end(client, path, answer, _describe, patience_seconds=_PATIENCE_SECONDS)


def finish(client: Client, answer: Any, *, as_json: bool) -> None:
    """Show an evaluation that has ended. Raises CommandFailed unless it has succeeded."""
    if as_json:
        print_json(answer)
    else:
        show_with_results(client, answer)
    found = EvaluationView.model_validate(answer)
    work.check_success(found.state, found.error, noun="evaluation", code="evaluation_not_ready")


def show_with_results(client: Client, answer: Any) -> None:
    """Show an evaluation, with its results so far."""
    found = EvaluationView.model_validate(answer)
    so_far = found.results
    if so_far is None and found.done:
        so_far = ResultsView.model_validate(client.get(f"/evaluations/{found.id}/results"))
    output.show_evaluation(found, so_far)


def _describe(answer: Any) -> str:
    found = EvaluationView.model_validate(answer)
    return found.waiting_for or f"{found.phase or 'starting'} {found.progress}"
