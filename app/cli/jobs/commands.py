"""`tunesmith jobs`: submit, preflight, follow, list, show, logs, metrics, samples, changes, rm."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli import completions
from app.cli.connection.client import Client, segment
from app.cli.connection.invocation import Json, client_of
from app.cli.datasets.uploads import fill_in_datasets
from app.cli.deletion import Yes, delete_each
from app.cli.failures import CommandFailed, ExitCode, UsageProblem
from app.cli.jobs import event_lines, output as job_output
from app.cli.jobs.event_source import Interrupted, follow
from app.cli.jobs.files import read_job_file
from app.cli.jobs.follow_display import make_display
from app.cli.jobs.views import EventView, JobView, LossPointView, PreflightView, SamplesView
from app.cli.names import find_job, find_job_id
from app.cli.output import clean, note, print_json, print_json_line, show_fields
from app.cli.work import TAKES_NEGATIVES, NewPriority, change_priority

cli = typer.Typer(help="Fine-tuning jobs: submit one, watch it, stop it.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="JOB", help="Id or name.", autocompletion=completions.jobs)]
File = Annotated[Path, typer.Argument(metavar="FILE", help="Job file, YAML or JSON; `-`: standard input.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Goes before the file: --set training.learning_rate=1e-4."
    ),
]
State = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


@cli.command()
def submit(
    context: typer.Context,
    file: File,
    overrides: Set = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Put a job in the queue. A dataset in the file may be an id, a name, or a file, which is uploaded."""
    client = client_of(context)
    job_file = read_job_file(file, overrides or [])
    body = fill_in_datasets(client, job_file)
    try:
        answer = client.create("/jobs", body)
    except CommandFailed as failure:
        raise job_file.locate(failure) from None
    job = JobView.model_validate(answer)
    if follow_it:
        note(f"Submitted {job.name} ({job.id})." if job.name != job.id else f"Submitted {job.id}.")
        return _watch(client, job, as_json=as_json)
    if as_json:
        return print_json(answer)
    typer.echo(job.id)
    note(f"Queued. `tunesmith jobs follow {job.id}` watches it.", "dim")


@cli.command()
def preflight(context: typer.Context, file: File, overrides: Set = None, as_json: Json = False) -> None:
    """What a job would do and need, before it starts. Exit status 1 where it would not fit the memory."""
    client = client_of(context)
    job_file = read_job_file(file, overrides or [])
    body = fill_in_datasets(client, job_file)
    try:
        answer = client.post("/jobs/preflight", body)
    except CommandFailed as failure:
        raise job_file.locate(failure) from None
    found = PreflightView.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        job_output.show_preflight(found)
    if not found.fits:
        raise typer.Exit(ExitCode.ERROR)


@cli.command("follow")
def follow_job(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Watch a job until it has ended: bar, loss, speed, time left. Exit status 1 unless it succeeds."""
    client = client_of(context)
    _watch(client, JobView.model_validate(find_job(client, name)), as_json=as_json)


@cli.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    search: Annotated[
        str | None, typer.Option(help="Only jobs whose name, id, model or notes contain this text.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """Jobs, the newest first."""
    found = client_of(context).list("/jobs", limit=limit, params={"state": state, "search": search})
    if as_json:
        return print_json({"data": found})
    job_output.show_list([JobView.model_validate(job) for job in found])


@cli.command()
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """State, progress, loss, attempts, the error of a failed job; base model and adapter on rows held out."""
    client = client_of(context)
    answer = client.get(f"/jobs/{segment(find_job_id(client, name))}")
    if as_json:
        return print_json(answer)
    job = JobView.model_validate(answer)
    job_output.show(job, _curve(client, job.id))


@cli.command()
def logs(
    context: typer.Context,
    name: Name,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: Json = False,
) -> None:
    """What a job did, a line an event; with --json a JSON object a line."""
    client = client_of(context)
    job_id = find_job_id(client, name)
    stored = (EventView.model_validate(event) for event in client.iterate(f"/jobs/{job_id}/events"))
    try:
        for event in follow(client, job_id) if follow_it else stored:
            if isinstance(event, Interrupted):
                note(f"Connection lost: {event.reason} Trying again.", "yellow")
            elif as_json:
                print_json_line(event.model_dump(mode="json"))
            else:
                sys.stdout.write(event_lines.render(event) + "\n")
                sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


@cli.command()
def metrics(
    context: typer.Context,
    name: Name,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
    as_json: Json = False,
) -> None:
    """The loss curve: training and evaluation loss, learning rate, gradient norm, speed, memory."""
    client = client_of(context)
    path = f"/jobs/{find_job_id(client, name)}/metrics"
    if csv:
        sys.stdout.write(client.get_text(path, {"format": "csv"}))
    elif as_json:
        print_json(client.get(path, {"format": "json"}))
    else:
        job_output.show_curve([LossPointView.model_validate(point) for point in client.get(path)["data"]])


@cli.command()
def samples(
    context: typer.Context,
    name: Name,
    show_all: Annotated[
        bool, typer.Option("--all", help="At every step, not the first and last alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Sample answers: what the dataset says, what the model said before training, and what it says now."""
    client = client_of(context)
    found = client.list(f"/jobs/{find_job_id(client, name)}/samples")
    if as_json:
        return print_json({"data": found})
    job_output.show_samples([SamplesView.model_validate(one) for one in found], every_step=show_all)


@cli.command()
def cancel(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """End a job; a running one stops after its step and keeps a checkpoint."""
    _request_change(context, name, "cancel", as_json=as_json)


@cli.command()
def pause(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Free the GPU; the job keeps its place and goes on with `resume`."""
    _request_change(context, name, "pause", as_json=as_json)


@cli.command()
def resume(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Queue a paused job again; it goes on as if it had never stopped."""
    _request_change(context, name, "resume", as_json=as_json)


@cli.command()
def retry(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    _request_change(context, name, "retry", as_json=as_json)


@cli.command("priority", context_settings=TAKES_NEGATIVES)
def set_priority(context: typer.Context, name: Name, priority: NewPriority, as_json: Json = False) -> None:
    """Give a waiting or paused job another place in the queue."""
    job_id = find_job_id(client_of(context), name)
    change_priority(context, f"/jobs/{job_id}", priority, as_json=as_json)


@cli.command("note")
def note_down(
    context: typer.Context,
    name: Name,
    entries: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="`team=support`; `team=` removes it.")
    ],
    as_json: Json = False,
) -> None:
    """Add notes and tags to a job, in words of your own; `jobs list --search` finds them."""
    client = client_of(context)
    job = find_job(client, name)
    metadata = dict(job["spec"].get("metadata") or {})
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not (key and equals):
            raise UsageProblem(f"{entry} is not of the form KEY=VALUE.", hint="For example team=support")
        metadata[key] = value
    metadata = {key: value for key, value in metadata.items() if value}
    answer = client.patch(f"/jobs/{job['id']}", {"metadata": metadata})
    if as_json:
        return print_json(answer)
    show_fields([("id", answer["id"]), *sorted(metadata.items())])


@cli.command("rm")
def remove(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="JOB...", autocompletion=completions.jobs)],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete jobs that have ended, with their logs and checkpoints. Their adapters must be deleted first."""
    client = client_of(context)
    ids = [find_job_id(client, name) for name in names]
    delete_each(client, "/jobs", "job", ids, yes=yes, as_json=as_json)


def _request_change(context: typer.Context, name: str, change: str, *, as_json: bool) -> None:
    client = client_of(context)
    answer = client.post(f"/jobs/{find_job_id(client, name)}/{change}")
    if as_json:
        return print_json(answer)
    typer.echo(f"{answer['id']}  {job_output.change_text(JobView.model_validate(answer))}")


def _watch(client: Client, job: JobView, *, as_json: bool) -> None:
    try:
        if waits_for := client.get(f"/jobs/{job.id}").get("waiting_for"):
            note(f"It waits for {waits_for}.")
        with make_display(job, on_stderr=as_json) as display:
            for event in follow(client, job.id):
                display.show(event)
        answer = client.get(f"/jobs/{job.id}")
    except KeyboardInterrupt:
        note(f"The job goes on. `tunesmith jobs follow {job.id}` comes back to it,")
        note(f"`tunesmith jobs cancel {job.id}` ends it.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except CommandFailed as failure:
        if failure.exit_code is ExitCode.UNREACHABLE:
            failure.hint = f"The job may well go on. `tunesmith jobs follow {job.id}` comes back to it."
        raise
    ended = JobView.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        job_output.show_end(ended, _adapter_name(client, ended))
    if ended.state != "succeeded":
        raise typer.Exit(ExitCode.ERROR)


def _adapter_name(client: Client, job: JobView) -> str | None:
    if job.adapter is None:
        return None
    try:
        return clean(str(client.get(f"/adapters/{job.adapter}")["name"]))
    except CommandFailed:
        return job.adapter  # deleted meanwhile


def _curve(client: Client, job_id: str) -> list[LossPointView]:
    return [LossPointView.model_validate(point) for point in client.get(f"/jobs/{job_id}/metrics")["data"]]
