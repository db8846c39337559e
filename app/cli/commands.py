"""The command `tunesmith`: its subcommands, its global options, and its exit statuses."""

import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli import local, status, storage, webhooks
from app.cli.adapters import commands as adapter_commands
from app.cli.aliases import commands as alias_commands
from app.cli.connection import login
from app.cli.connection.invocation import Invocation
from app.cli.datasets import commands as dataset_commands
from app.cli.evaluations import commands as evaluation_commands
from app.cli.exports import commands as export_commands
from app.cli.failures import CommandFailed
from app.cli.generate import chat, commands as generate_commands
from app.cli.jobs import commands as job_commands
from app.cli.keys import commands as key_commands
from app.cli.models import commands as model_commands
from app.cli.openai_imports import commands as import_commands
from app.cli.output import show_failure

_HELP = """Fine-tune language models and talk to the result, on this machine or on another one.

Exit status: 0 done; 1 the API said no, or the job did not succeed; 2 wrong usage; 3 no API answers;
4 the key is missing or wrong; 5 there is no such thing; 6 its state does not allow this; 7 busy, try later;
130 Ctrl-C.
"""


class _Commands(TyperGroup):
    """Turns CommandFailed into an error message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandFailed as failure:
            show_failure(failure, as_json=isinstance(ctx.obj, Invocation) and ctx.obj.as_json)
            raise typer.Exit(failure.exit_code) from None


# In narrower terminals Rich's tables of options cut their names; plain help folds.
_BOXED_HELP_COLUMNS = 80

cli = typer.Typer(
    cls=_Commands,
    help=_HELP,
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= _BOXED_HELP_COLUMNS else None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"tunesmith {_find_version()}")
        raise typer.Exit


def _find_version() -> str:
    try:
        return version("tunesmith")
    except PackageNotFoundError:  # in an image, which holds the code and no installed package
        return "(from source)"


@cli.callback()
def tunesmith(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(envvar="TUNESMITH_URL", help="Address of the API.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="TUNESMITH_API_KEY",
            show_envvar=True,
            help="Key of the API. Better saved by `tunesmith login`: others can see a command line.",
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(envvar="TUNESMITH_PROFILE", help="Profile of `tunesmith login`.")
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version, and exit."),
    ] = False,
) -> None:
    context.obj = Invocation(url=url, api_key=api_key, profile=profile)
    context.call_on_close(context.obj.close)


cli.command()(local.up)
cli.command()(local.doctor)
cli.command(**local.PASSED_ON)(local.backup)
cli.command(**local.PASSED_ON)(local.restore)
cli.command(**local.PASSED_ON)(key_commands.keys)
cli.command("login")(login.log_in)
cli.command("status")(status.show_status)
cli.command("usage")(key_commands.show_usage)
cli.add_typer(dataset_commands.cli, name="datasets")
cli.add_typer(model_commands.cli, name="models")
cli.add_typer(job_commands.cli, name="jobs")
cli.add_typer(adapter_commands.cli, name="adapters")
cli.add_typer(alias_commands.cli, name="aliases")
cli.add_typer(export_commands.cli, name="exports")
cli.add_typer(evaluation_commands.cli, name="evaluations")
cli.add_typer(import_commands.cli, name="import")
cli.add_typer(webhooks.cli, name="webhooks")
cli.add_typer(storage.cli, name="storage")
cli.command("generate")(generate_commands.generate)
cli.command("chat")(chat.chat)


def main() -> None:
    """The `tunesmith` console script."""
    cli(prog_name="tunesmith")
