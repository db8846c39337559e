"""`tunesmith evaluations`: create, list, show, rows, results, wait, priority, cancel, retry, rm."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli import completions
from app.cli.connection.client import segment
from app.cli.connection.downloads import STDOUT, choose_path
from app.cli.connection.invocation import Json, client_of
from app.cli.deletion import Yes, delete_each
from app.cli.evaluations import output
from app.cli.evaluations.following import finish, show_with_results, wait_for_end
from app.cli.evaluations.graders import READY_GRADERS, find_graders, read_json
from app.cli.evaluations.views import EvaluationView, ResultsView, SideBySideView
from app.cli.failures import UsageProblem
from app.cli.names import find_dataset_id, find_job_id
from app.cli.output import note, print_json
from app.cli.work import TAKES_NEGATIVES, NewPriority, PriorityOption, change_priority, request_change

cli = typer.Typer(help="Several models asked the same rows, graded and compared.", no_args_is_help=True)
Evaluation = Annotated[
    str, typer.Argument(metavar="EVALUATION", help="Id, from `tunesmith evaluations list`.")
]
Wait = Annotated[bool, typer.Option(help="Until it has ended.")]


@cli.command()
def create(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="JSON with the fields of POST /evaluations; options go before it."
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Adapter or base model; repeat it for each.",
            autocompletion=completions.targets,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Dataset of the rows.", autocompletion=completions.datasets)
    ] = None,
    held_out_of: Annotated[
        str | None,
        typer.Option(help="Job whose held-out rows are evaluated on.", autocompletion=completions.jobs),
    ] = None,
    graders: Annotated[
        list[str] | None,
        typer.Option(
            "--grader",
            "-g",
            help=f"{', '.join(READY_GRADERS)}, or a JSON file with one grader or a list; repeat it for each.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Model that the others are compared with; default: the first base model."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="A name for people.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most rows; more are drawn from.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Which rows are drawn.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Default 0: greedy.")] = None,
    priority: PriorityOption = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Ask several models the same rows, and grade their answers.

    With --wait, exit status 1 unless it succeeds.
    """
    client = client_of(context)
    body = read_json(file, dict) if file else {}
    given: dict[str, Any] = {"name": name, "baseline": baseline, "limit": limit, "seed": seed}
    given |= {"models": models, "priority": priority}
    given["dataset"] = find_dataset_id(client, dataset) if dataset else None
    given["held_out_of"] = find_job_id(client, held_out_of) if held_out_of else None
    given["graders"] = [one for text in graders for one in find_graders(text)] if graders else None
    body |= {key: value for key, value in given.items() if value is not None}
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    sampling = {key: value for key, value in sampling.items() if value is not None}
    if sampling:
        body["sampling"] = {**body.get("sampling", {}), **sampling}
    if not body.get("models"):
        raise UsageProblem(
            "No model is named.", hint="--model NAME, as often as there are models to compare."
        )
    answer = client.create("/evaluations", body)
    if wait:
        return finish(client, wait_for_end(client, answer), as_json=as_json)
    if as_json:
        return print_json(answer)
    typer.echo(answer["id"])
    note(f"Queued. `tunesmith evaluations show {answer['id']}` shows how far it is.", "dim")


@cli.command("list")
def list_evaluations(
    context: typer.Context,
    state: Annotated[
        Literal["queued", "running", "succeeded", "failed", "cancelled"] | None,
        typer.Option(help="Only those in this state."),
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Only those whose name or id contains this text.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Evaluations, the newest first."""
    found = client_of(context).list("/evaluations", limit=limit, params={"state": state, "search": search})
    if as_json:
        return print_json({"data": found})
    output.show_list([EvaluationView.model_validate(one) for one in found])


@cli.command()
def show(context: typer.Context, evaluation: Evaluation, wait: Wait = False, as_json: Json = False) -> None:
    """State, progress, and the results so far, with 95% confidence intervals."""
    client = client_of(context)
    answer = client.get(f"/evaluations/{segment(evaluation)}")
    if wait:
        return finish(client, wait_for_end(client, answer), as_json=as_json)
    if as_json:
        return print_json(answer)
    show_with_results(client, answer)


@cli.command("wait")
def wait_for(context: typer.Context, evaluation: Evaluation, as_json: Json = False) -> None:
    """Wait until an evaluation has ended. Exit status 1 unless it has succeeded."""
    client = client_of(context)
    answer = client.get(f"/evaluations/{segment(evaluation)}")
    finish(client, wait_for_end(client, answer), as_json=as_json)


@cli.command()
def rows(
    context: typer.Context,
    evaluation: Evaluation,
    disagree: Annotated[bool, typer.Option(help="Only rows on which the models differ.")] = False,
    outcome: Annotated[
        Literal["passed", "failed", "won", "tied", "lost", "error"] | None,
        typer.Option(help="Only rows with such an answer; `won` is against the baseline."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --outcome: of this model.")] = None,
    grader: Annotated[str | None, typer.Option(help="With --outcome: by this grader.")] = None,
    search: Annotated[str | None, typer.Option(help="Only rows that contain this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The first so many.")] = 10,
    as_json: Json = False,
) -> None:
    """Rows with the answers of all models and their scores."""
    wanted = {"outcome": outcome, "model": model, "grader": grader, "search": search}
    params = {**wanted, "disagree": "true" if disagree else None}
    found = client_of(context).list(f"/evaluations/{segment(evaluation)}/rows", limit=limit, params=params)
    if as_json:
        return print_json({"data": found})
    for one in found:
        output.show_row(SideBySideView.model_validate(one))
    if not found:
        note("No row is like that.", "dim")


@cli.command()
def results(
    context: typer.Context,
    evaluation: Evaluation,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all rows as CSV; `-` for standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """The results as a table, or every row as a CSV file."""
    client = client_of(context)
    path = f"/evaluations/{segment(evaluation)}/results"
    if file is not None:
        text = client.get_text(f"{path}.csv")
        target = choose_path(file, f"{evaluation}.csv", force=force)
        if target == STDOUT:
            return typer.echo(text, nl=False)
        target.write_text(text, newline="")
        return typer.echo(str(target))
    answer = client.get(path)
    if as_json:
        return print_json(answer)
    output.show_results(ResultsView.model_validate(answer))


@cli.command("priority", context_settings=TAKES_NEGATIVES)
def set_priority(
    context: typer.Context, evaluation: Evaluation, priority: NewPriority, as_json: Json = False
) -> None:
    """Give a waiting evaluation another place in the queue."""
    change_priority(context, f"/evaluations/{segment(evaluation)}", priority, as_json=as_json)


@cli.command()
def cancel(context: typer.Context, evaluation: Evaluation, as_json: Json = False) -> None:
    """End an evaluation; its answers stay."""
    request_change(context, f"/evaluations/{segment(evaluation)}", "cancel", as_json=as_json)


@cli.command()
def retry(context: typer.Context, evaluation: Evaluation, as_json: Json = False) -> None:
    """Run an evaluation that has ended again: what is missing or has an error is asked again."""
    request_change(context, f"/evaluations/{segment(evaluation)}", "retry", as_json=as_json)


@cli.command("rm")
def remove(
    context: typer.Context,
    evaluations: Annotated[list[str], typer.Argument(metavar="EVALUATION...")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete evaluations that have ended, with their answers."""
    delete_each(client_of(context), "/evaluations", "evaluation", evaluations, yes=yes, as_json=as_json)
