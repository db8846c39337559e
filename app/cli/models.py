"""`tunesmith models`: the base models that a job may name."""

import typer

from app.cli.connection.invocation import Json, client_of
from app.cli.output import note, print_json, show_table, size_text
from app.cli.views import BaseModelView


def list_models(context: typer.Context, as_json: Json = False) -> None:
    """Base models that a job or a question may name."""
    answer = client_of(context).get("/models")
    if as_json:
        return print_json(answer)
    found = [BaseModelView.model_validate(model) for model in answer["data"]]
    rows = [
        (
            model.name,
            model.state.replace("_", " "),
            f"{model.context_length:,}" if model.context_length else "",
            size_text(model.size_bytes) if model.size_bytes else "",
            model.architecture or "",
        )
        for model in found
    ]
    show_table(
        ("NAME", "STATE", "CONTEXT", "SIZE", "ARCHITECTURE"),
        rows,
        empty="The models folder of the API is empty.",
    )
    if answer["any_hub_model"]:
        note("Any model of the Hub may be named too, as owner/name.", "dim")
