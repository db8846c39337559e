"""`tunesmith import`: takes over what was exported from OpenAI."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.connection.invocation import Json, client_of
from app.cli.failures import ExitCode, UsageProblem
from app.cli.openai_imports import output
from app.cli.openai_imports.files import given_files, read_export
from app.cli.openai_imports.plan import Choices, Plan, given_base_models, make_plan
from app.cli.openai_imports.submission import Submission
from app.cli.output import note, print_json, show_failure, show_table

cli = typer.Typer(help="Move in from another service.", no_args_is_help=True)


@cli.callback()
def imports() -> None:
    """Move in from another service."""


@cli.command()
def openai(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Exported files, or folders of them.")
    ],
    base_models: Annotated[
        list[str] | None,
        typer.Option(
            "--base-model",
            metavar="[OPENAI=]NAME",
            help="The base model in the place of OpenAI's models, or of those whose name begins with OPENAI.",
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="ID=PATH", help="The file that OpenAI knew by an id."),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="The model that grades, in the place of those that graders name.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--output", "-o", help="Where job files, evaluations and graders are written.")
    ] = Path("from-openai"),
    submit: Annotated[
        bool, typer.Option("--submit", help="Upload the datasets, and submit jobs and evaluations.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make datasets, jobs and evaluations of files exported from OpenAI; without --submit only files."""
    choices = Choices(given_base_models(base_models or []), given_files(files or []), judge)
    plan = make_plan(read_export([*paths, *choices.files.values()]), choices)
    if submit and plan.unmapped:
        raise UsageProblem(
            f"No base model is given for {', '.join(plan.unmapped)}.",
            hint="--base-model NAME is for all of them, --base-model OPENAI=NAME for one.",
        )
    if not as_json:
        output.show_plan(plan)
    written = output.write_files(plan, folder)
    if written:
        note(f"{len(written)} files are written to {folder}.", "dim")
    if submit:
        return _submit(context, plan, as_json=as_json)
    if as_json:
        print_json({**output.as_json(plan), "files": [str(path) for path in written]})
    elif plan.datasets or written:
        note("Nothing was sent. --submit sends it; `tunesmith jobs submit FILE` sends one job.", "dim")
    return None


def _submit(context: typer.Context, plan: Plan, *, as_json: bool) -> None:
    submission = Submission(client_of(context))
    submission.run(plan)
    if as_json:
        made = [{"kind": kind, "name": name, "id": made_id} for kind, name, made_id in submission.made]
        failed = [
            {
                "kind": kind,
                "name": name,
                "code": failure.code,
                "message": failure.message,
                "hint": failure.hint,
            }
            for kind, name, failure in submission.failures
        ]
        print_json({**output.as_json(plan), "made": made, "failed": failed})
    else:
        show_table(("KIND", "NAME", "ID"), submission.made, empty="Nothing was made.")
        for kind, name, failure in submission.failures:
            note(f"The {kind} {name} was refused:", "red")
            show_failure(failure, as_json=False)
    if submission.failures:
        raise typer.Exit(ExitCode.ERROR)
