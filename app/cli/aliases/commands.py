"""`tunesmith aliases`: list, show, set, rollback, rm."""

from typing import Annotated, Any

import typer

from app.cli import completions
from app.cli.aliases.views import AliasVersionView, AliasView, targets_text
from app.cli.connection.client import segment
from app.cli.connection.invocation import Json, client_of
from app.cli.deletion import Yes, delete_each
from app.cli.failures import UsageProblem
from app.cli.output import age_text, print_json, show_fields, show_table

cli = typer.Typer(help="Names that stay while the model behind them changes.", no_args_is_help=True)
Alias = Annotated[str, typer.Argument(metavar="ALIAS", autocompletion=completions.aliases)]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", min=0, help="Only if it is of this version still; 0: only if it is new."),
]


@cli.command("list")
def list_aliases(context: typer.Context, as_json: Json = False) -> None:
    """All aliases, by name."""
    listed = client_of(context).list("/aliases")
    if as_json:
        return print_json({"data": listed})
    rows = [
        (one.name, targets_text(one.targets), str(one.version), age_text(one.updated_at))
        for one in map(AliasView.model_validate, listed)
    ]
    show_table(
        ("ALIAS", "POINTS TO", "VERSION", "CHANGED"),
        rows,
        empty="There is no alias yet: `tunesmith aliases set NAME ADAPTER` makes one.",
    )


@cli.command()
def show(context: typer.Context, alias: Alias, as_json: Json = False) -> None:
    """Where an alias points, and where it has pointed; the versions of a deleted one, too."""
    versions = client_of(context).get(f"/aliases/{segment(alias)}/versions")
    if as_json:
        return print_json(versions)
    found = [AliasVersionView.model_validate(one) for one in versions["data"]]
    show_fields(
        [("alias", alias), ("points to", targets_text(found[0].targets) or "nothing: it was deleted")]
    )
    rows = [
        (
            str(one.version),
            f"{one.action} to {one.restored}" if one.restored else one.action,
            targets_text(one.targets),
            one.changed_by or "",
            age_text(one.created_at),
        )
        for one in found
    ]
    show_table(("VERSION", "CHANGE", "POINTED TO", "BY", "MADE"), rows, empty="")


@cli.command("set")
def set_alias(
    context: typer.Context,
    alias: Alias,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="An adapter, a checkpoint or a base model; or several, each with its share: helper-v1=0.9 "
            "helper-v2=0.1",
            autocompletion=completions.targets,
        ),
    ],
    if_version: IfVersion = None,
    as_json: Json = False,
) -> None:
    """Point an alias to a model, or share it among several. It is made where there is none."""
    body: dict[str, Any] = {"target": targets[0]} if len(targets) == 1 else {"shares": _read_shares(targets)}
    client = client_of(context)
    _show(client.put(f"/aliases/{segment(alias)}", body, headers=_conditions(if_version)), as_json=as_json)


@cli.command("rollback")
def roll_back(
    context: typer.Context,
    alias: Alias,
    version: Annotated[
        int | None, typer.Option("--to", min=1, help="A version; default: the one before the present one.")
    ] = None,
    if_version: IfVersion = None,
    as_json: Json = False,
) -> None:
    """Point an alias to where it pointed before; a second time undoes it. Brings back a deleted one."""
    path = f"/aliases/{segment(alias)}/rollback"
    body = {} if version is None else {"version": version}
    _show(client_of(context).post(path, body, headers=_conditions(if_version)), as_json=as_json)


@cli.command("rm")
def remove(
    context: typer.Context,
    aliases: Annotated[list[str], typer.Argument(metavar="ALIAS...", autocompletion=completions.aliases)],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete aliases; what they point to stays."""
    delete_each(client_of(context), "/aliases", "alias", aliases, yes=yes, as_json=as_json)


def _show(answer: Any, *, as_json: bool) -> None:
    if as_json:
        return print_json(answer)
    found = AliasView.model_validate(answer)
    typer.echo(f"{found.name}  version {found.version}  {targets_text(found.targets)}")


def _conditions(version: int | None) -> dict[str, str]:
    if version is None:
        return {}
    return {"If-None-Match": "*"} if version == 0 else {"If-Match": f'"{version}"'}


def _read_shares(targets: list[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for target in targets:
        name, _, share = target.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            name = ""
        if not name:
            raise UsageProblem(
                f"{target!r} has no share.",
                hint="Of several models each has one: helper-v1=0.9 helper-v2=0.1",
            )
    return shares
