"""Resolves the names of jobs, datasets and adapters to the ids that the API takes."""

import difflib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.cli.connection.client import Client, segment
from app.cli.failures import CommandFailed, ExitCode
from app.cli.output import note


def find_job(client: Client, name: str) -> Any:
    """A job by its id, or the newest of a name. Raises CommandFailed."""
    return (
        client.get(f"/jobs/{segment(name)}") if name.startswith("job_") else _find_newest(client, "job", name)
    )


def find_job_id(client: Client, name: str) -> str:
    """The id itself, or that of the newest job of a name. Raises CommandFailed."""
    return name if name.startswith("job_") else str(find_job(client, name)["id"])


def find_dataset(client: Client, name: str) -> Any:
    """A dataset by its id, or the newest of a name. Raises CommandFailed."""
    if name.startswith("ds_"):
        return client.get(f"/datasets/{segment(name)}")
    return _find_newest(client, "dataset", name)


def find_dataset_id(client: Client, name: str) -> str:
    """The id itself, or that of the newest dataset of a name. Raises CommandFailed."""
    return name if name.startswith("ds_") else str(find_dataset(client, name)["id"])


def find_adapter(client: Client, name: str) -> Any:
    """An adapter by its id or name. Raises CommandFailed."""
    if "/" in name:  # OpenAI's clients name adapters so; such a name can't be part of a path
        return _find_newest(client, "adapter", name)
    return client.get(f"/adapters/{segment(name)}")


def find_target(client: Client, name: str) -> dict[str, str]:
    """What generates: `{"adapter": …}`; `{"model": …}` for an alias, `{"base_model": …}` for a base model."""
    try:
        return {"adapter": str(find_adapter(client, name)["id"])}
    except CommandFailed as failure:
        if failure.exit_code is not ExitCode.NOT_FOUND:
            raise
        missing = failure
    if any(one["name"] == name for one in client.iterate("/aliases")):
        # Of several models the same one serves the whole conversation.
        return {"model": name, "user": uuid.uuid4().hex}
    base_models = [str(model["name"]) for model in client.get("/models")["data"]]
    if "/" in name or name in base_models:
        return {"base_model": name}
    if missing.message == f"There is no adapter {name!r}.":
        missing.message = f"There is neither an adapter nor a base model {name!r}."
        missing.hint = (
            f"{_suggest(name, base_models)}{missing.hint or ''} `tunesmith models` lists base models."
        )
    raise missing


def looks_like_file(name: str) -> bool:
    """Whether a name has the form of a file's path; the file need not exist."""
    return "/" in name or Path(name).suffix.lower() in {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz"}


def _find_newest(client: Client, kind: str, name: str) -> Any:
    listed = list(client.iterate(f"/{kind}s"))
    found = [one for one in listed if one["name"] == name]
    if not found:
        suggestion = _suggest(name, [str(one["name"]) for one in listed])
        raise CommandFailed(
            f"There is no {kind} {name!r}.",
            exit_code=ExitCode.NOT_FOUND,
            code=f"{kind}_not_found",
            hint=f"{suggestion}`tunesmith {kind}s list` shows their ids and names.",
        )
    if len(found) > 1:
        note(f"{len(found)} {kind}s are named {name}; this is the newest, {found[0]['id']}.", "dim")
    return found[0]


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}? " if close else ""
